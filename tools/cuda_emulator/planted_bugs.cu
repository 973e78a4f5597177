// One planted bug each; `fixed` mends it.
#include <cstring>

#include "kvmix/base/cuda.h"
#include "kvmix/base/ptx.h"
#include "tools/cuda_emulator/planted_bugs.h"

namespace kvmix {
namespace {
template <bool fixed>
__global__ void MissingBarrier(float* out, int) {
  KVMIX_SHARED(float, a, [128]);
  a[threadIdx.x] = threadIdx.x;
  if (fixed) __syncthreads();
  out[threadIdx.x] = a[127 - threadIdx.x];
}
// The write-after-read one, forgotten more often.
template <bool fixed>
__global__ void BarrierBeforeReuse(float* out, int) {
  KVMIX_SHARED(float, a, [128]);
  float sum = 0;
  for (int s = 0; s < 3; ++s) {
    a[threadIdx.x] = threadIdx.x * s;
    __syncthreads();
    sum += a[(threadIdx.x + 33) % 128];
    if (fixed) __syncthreads();
  }
  out[threadIdx.x] = sum;
}
template <bool fixed>
__global__ void MissingSyncwarp(float* out, int) {
  KVMIX_SHARED(float, a, [128]);
  a[threadIdx.x] = threadIdx.x;
  if (fixed) __syncwarp();
  out[threadIdx.x] = a[threadIdx.x ^ 1];
}
template <bool fixed>
__global__ void EarlyExit(float* out, int n) {
  KVMIX_SHARED(float, a, [128]);
  const int i = threadIdx.x;
  if (!fixed && i >= n) return;
  a[i] = i;
  __syncthreads();
  if (i < n) out[i] = a[i];
}
template <bool fixed>
__global__ void SkippedBarrier(float* out, int) {
  KVMIX_SHARED(float, a, [128]);
  a[threadIdx.x] = 1;
  if (fixed || threadIdx.x < 64) __syncthreads();
  out[threadIdx.x] = a[threadIdx.x];
  __syncthreads();
}
template <bool fixed>
__global__ void GlobalPastEnd(float* out, int n) {
  const int i = threadIdx.x + blockIdx.x * blockDim.x;
  if (i < n || (!fixed && i == n)) out[i] = i;
}
template <bool fixed>
__global__ void SharedPastEnd(float* out, int) {
  KVMIX_SHARED(float, a, [128]);
  a[threadIdx.x + (fixed ? 0 : 1)] = 1;
  __syncthreads();
  out[threadIdx.x] = a[threadIdx.x];
}
template <bool fixed>
__global__ void DynamicPastEnd(float* out, int) {
  KVMIX_DYNAMIC_SHARED(float, a);
  a[threadIdx.x + (fixed ? 0 : 1)] = 1;
  __syncthreads();
  out[threadIdx.x] = a[threadIdx.x];
}
template <bool fixed>
__global__ void UninitialisedShared(float* out, int) {
  KVMIX_SHARED(float, a, [129]);
  a[threadIdx.x] = 1;
  if (fixed && threadIdx.x == 0) a[128] = 1;
  __syncthreads();
  out[threadIdx.x] = a[threadIdx.x] + a[threadIdx.x + 1];
}
template <bool fixed>
__global__ void MissingAsyncWait(float* out, int) {
  KVMIX_SHARED(float, a, [128]);
  if (threadIdx.x < 32)
    ptx::CpAsync16(a + threadIdx.x * 4, out + threadIdx.x * 4);
  ptx::CpAsyncCommit();
  if (fixed) ptx::CpAsyncWait<0>();
  __syncthreads();
  const float v = a[127 - threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = v + 1;
  ptx::CpAsyncWait<0>();
}
template <bool fixed>
__global__ void ShuffleInBranch(float* out, int) {
  float v = threadIdx.x;
  if (threadIdx.x % 32 < 16) v += __shfl_xor_sync(fixed ? 0xffffu : ~0u, v, 1);
  out[threadIdx.x] = v;
  __syncthreads();
}
// Block b reads what block b - 1 of the same launch wrote.
template <bool fixed>
__global__ void InterBlock(float* out, int) {
  if (threadIdx.x == 0)
    out[blockIdx.x] =
        blockIdx.x + (!fixed && blockIdx.x ? out[blockIdx.x - 1] : 0);
}
// Sums the blocks' partial results in the last block to finish.
template <bool fixed>
__global__ void LastBlockWithoutFence(float* out, int) {
  KVMIX_SHARED(bool, last);
  if (threadIdx.x == 0) {
    out[1 + blockIdx.x] = 1;
    if (fixed) __threadfence();
    last = atomicInc(reinterpret_cast<unsigned*>(out + 100), gridDim.x - 1) ==
           gridDim.x - 1;
    if (fixed) __threadfence();
    float sum = 0;
    if (last)
      for (unsigned b = 0; b < gridDim.x; ++b) sum += out[1 + b];
    if (last) out[0] = sum;
  }
}
template <bool fixed>
__global__ void MisalignedVector(float* out, int) {
  if (threadIdx.x == 0)
    *reinterpret_cast<float4*>(out + (fixed ? 4 : 1)) = make_float4(1, 2, 3, 4);
}
template <bool fixed>
__global__ void LocalArrayPastEnd(float* out, int n) {
  volatile float a[8];
  // Nothing that a compiler can see: n is 200.
  for (int i = 0; i < 8 + (fixed ? 0 : n / 200); ++i) a[i] = i;
  out[threadIdx.x] = a[threadIdx.x % 8];
}
template <bool fixed>
__global__ void Trapped(float* out, int) {
  if (!fixed && threadIdx.x == 3) __trap();
  __syncthreads();
  out[threadIdx.x] = 1;
}

using Kernel = void (*)(float*, int);
struct Bug {
  const char* name;
  Kernel bad, good;
  int blocks;
  size_t smem;
};
#define KVMIX_BUG(kernel, blocks, smem) \
  { #kernel, kernel < false>, kernel < true>, blocks, smem }
const Bug kBugs[] = {
    KVMIX_BUG(MissingBarrier, 1, 0),
    KVMIX_BUG(BarrierBeforeReuse, 1, 0),
    KVMIX_BUG(MissingSyncwarp, 1, 0),
    KVMIX_BUG(EarlyExit, 1, 0),
    KVMIX_BUG(SkippedBarrier, 1, 0),
    KVMIX_BUG(GlobalPastEnd, 2, 0),
    KVMIX_BUG(SharedPastEnd, 1, 0),
    KVMIX_BUG(DynamicPastEnd, 1, 128 * sizeof(float)),
    KVMIX_BUG(UninitialisedShared, 1, 0),
    KVMIX_BUG(MissingAsyncWait, 1, 0),
    KVMIX_BUG(ShuffleInBranch, 1, 0),
    KVMIX_BUG(InterBlock, 4, 0),
    KVMIX_BUG(LastBlockWithoutFence, 4, 0),
    KVMIX_BUG(MisalignedVector, 1, 0),
    KVMIX_BUG(LocalArrayPastEnd, 1, 0),
    KVMIX_BUG(Trapped, 1, 0),
};
#undef KVMIX_BUG

}  // namespace

cudaError_t RunPlantedBug(const char* name, bool fixed, float* device, int n) {
  for (const Bug& bug : kBugs) {
    if (std::strcmp(name, bug.name)) continue;
    return Launch(fixed ? bug.good : bug.bad, bug.blocks, 128, bug.smem,
                  nullptr, device, n);
  }
  return cudaErrorInvalidValue;
}

}  // namespace kvmix
