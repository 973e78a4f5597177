// Small kernels that use between them everything the emulator offers.
#include "kvmix/base/cuda.h"
#include "kvmix/base/ptx.h"
#include "tools/cuda_emulator/example_kernels.h"

namespace kvmix {
namespace {

template <int kThreads>
__device__ float BlockSum(float v) {
  KVMIX_SHARED(float, partial, [kThreads / 32]);
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) sum += partial[w];
  return sum;
}

template <typename T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    RowScale(const T* __restrict__ x, const T* __restrict__ weight,
             T* __restrict__ y, int n, float epsilon) {
  const T* row = x + size_t(blockIdx.x) * n;
  float square = 0;
  for (int i = threadIdx.x; i < n; i += kThreads) {
    const float v = float(__ldg(row + i));
    square = fmaf(v, v, square);
  }
  const float scale = rsqrtf(BlockSum<kThreads>(square) / n + epsilon);
  for (int i = threadIdx.x; i < n; i += kThreads)
    y[size_t(blockIdx.x) * n + i] = T(float(row[i]) * scale * float(weight[i]));
}

// Group-wise asymmetric 4-bit: one warp a group of 32 values; writes 16 bytes
// packed as uint4 by one lane, scale and minimum as half2.
__global__ void Pack4(const __half* __restrict__ x, uint4* __restrict__ packed,
                      __half2* __restrict__ meta,
                      unsigned* __restrict__ histogram) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32,
            group = blockIdx.x * (blockDim.x / 32) + warp;
  KVMIX_DYNAMIC_SHARED(unsigned, words);  // 4 per warp
  const float v = __half2float(x[group * 32 + lane]);
  float low = v, high = v;
  for (int d = 16; d > 0; d /= 2) {
    low = fminf(low, __shfl_down_sync(~0u, low, d));
    high = fmaxf(high, __shfl_down_sync(~0u, high, d));
  }
  low = __shfl_sync(~0u, low, 0);
  high = __shfl_sync(~0u, high, 0);
  const float step = fmaxf(high - low, 1e-8f) / 15;
  const unsigned code = min(15, max(0, __float2int_rn((v - low) / step)));
  unsigned word = code << (lane % 8 * 4);
  for (int d = 4; d > 0; d /= 2) word |= __shfl_xor_sync(~0u, word, d);
  if (lane % 8 == 0) words[warp * 4 + lane / 8] = word;
  __syncwarp();
  if (lane == 0) {
    packed[group] = *reinterpret_cast<uint4*>(words + warp * 4);
    meta[group] = __floats2half2_rn(step, low);
  }
  const unsigned nonzero = __ballot_sync(~0u, code != 0);
  if (lane == 0) {
    atomicAdd(histogram, __popc(nonzero));
    atomicMax(histogram + 1, unsigned(__popc(nonzero)));
  }
}

__global__ void FloatAtomics(float* sum, int* largest, const float* x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) {
    atomicAdd(sum, x[i]);
    atomicMax(largest, int(x[i]));
  }
}

// C = A * B for one 16x8 tile: A by cp.async and ldmatrix, B by fragment loads
// from shared memory.
__global__ void OneTile(const __half* __restrict__ a,
                        const __half* __restrict__ b, float* __restrict__ c,
                        int k_total) {
  KVMIX_SHARED(__half, tile, [2][16][24]);  // rows padded to 48 bytes: no bank
                                            // conflicts, still 16-byte aligned
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4 * 2;
  auto fetch = [&](int stage, int k0) {
    ptx::CpAsync16(&tile[stage][lane / 2][lane % 2 * 8],
                   a + (lane / 2) * k_total + k0 + lane % 2 * 8);
    ptx::CpAsyncCommit();
  };
  float sum[4] = {};
  fetch(0, 0);
  for (int k0 = 0, stage = 0; k0 < k_total; k0 += 16, stage ^= 1) {
    if (k0 + 16 < k_total) {
      fetch(stage ^ 1, k0 + 16);
      ptx::CpAsyncWait<1>();
    } else {
      ptx::CpAsyncWait<0>();
    }
    __syncwarp();
    unsigned fa[4], fb[2];
    ptx::LdMatrixX4(fa, &tile[stage][lane % 16][lane / 16 * 8]);
    for (int i = 0; i < 2; ++i)
      fb[i] = *reinterpret_cast<const unsigned*>(
          b + g * k_total + k0 + t + i * 8);  // B column-major: b[n][k]
    ptx::MmaM16N8K16(sum, fa, fb, sum);
    __syncwarp();
  }
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + t + i % 2] = sum[i];
}

__global__ void Transposed(const __half* x, unsigned* out, unsigned* moved) {
  KVMIX_SHARED(__half, tile, [32][8]);
  for (int i = threadIdx.x; i < 256; i += 32) tile[i / 8][i % 8] = x[i];
  __syncwarp();
  unsigned r[4];
  ptx::LdMatrixX4<true>(r, tile[threadIdx.x]);
  for (int i = 0; i < 4; ++i) out[i * 32 + threadIdx.x] = r[i];
  ptx::LdMatrixX4(r, tile[threadIdx.x]);
  for (int i = 0; i < 4; ++i)
    moved[i * 32 + threadIdx.x] = ptx::MovMatrix(r[i]);
}

__global__ void AddOne(float* x) { x[threadIdx.x] += 1; }

// One thread of the grid writes, whatever its shape.
__global__ void Fill(float* x) {
  KVMIX_DYNAMIC_SHARED(float, s);
  const bool first = threadIdx.x + threadIdx.y + threadIdx.z == 0;
  if (first) s[0] = 1;
  __syncthreads();
  if (first && blockIdx.x == 0) x[0] = s[0];
}

}  // namespace

cudaError_t RunRowScale(const __half* x, const __half* w, __half* y, int rows,
                        int n, cudaStream_t s) {
  return Launch(RowScale<__half, 128>, rows, 128, 0, s, x, w, y, n, 1e-5f);
}
cudaError_t RunRowScale(const __nv_bfloat16* x, const __nv_bfloat16* w,
                        __nv_bfloat16* y, int rows, int n, cudaStream_t s) {
  return Launch(RowScale<__nv_bfloat16, 96>, rows, 96, 0, s, x, w, y, n, 1e-5f);
}
cudaError_t RunPack4(const __half* x, void* packed, __half2* meta,
                     unsigned* histogram, int groups) {
  return Launch(Pack4, groups / 4, 128, 4 * 16, nullptr, x,
                static_cast<uint4*>(packed), meta, histogram);
}
cudaError_t RunAtomics(float* sum, int* largest, const float* x, int n) {
  return Launch(FloatAtomics, (n + 63) / 64, 64, 0, nullptr, sum, largest, x,
                n);
}
cudaError_t RunOneTile(const __half* a, const __half* b, float* c, int k) {
  return Launch(OneTile, 1, 32, 0, nullptr, a, b, c, k);
}
cudaError_t RunTransposed(const __half* x, unsigned* out, unsigned* moved) {
  return Launch(Transposed, 1, 32, 0, nullptr, x, out, moved);
}
cudaError_t RunAddOne(float* x, int n, cudaStream_t s) {
  return Launch(AddOne, 1, n, 0, s, x);
}
cudaError_t RunFill(float* x, dim3 grid, dim3 block, size_t smem) {
  return Launch(Fill, grid, block, smem, nullptr, x);
}
cudaError_t AllowFill(size_t smem) {
  return cudaFuncSetAttribute(Fill, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(smem));
}

}  // namespace kvmix
