// The one CUDA header that a .cu file includes: CUDA itself under nvcc, the
// host emulator (tools/cuda_emulator) under any other compiler. Neither it nor
// a .cu file includes Abseil, Protobuf or Eigen.
//
//   __global__ void Scale(float* x, float factor) {
//     KVMIX_SHARED(float, tile, [128]);       // a variable of the block
//     KVMIX_DYNAMIC_SHARED(uint4, rows);      // `smem` bytes of the launch
//     ...
//   }
//   cudaError_t e = kvmix::Launch(Scale, grid, block, smem, stream, x, 2.f);
//
// Kernels stand in an unnamed namespace. Device code differs between the two
// worlds only in ptx.h and warp.h.
#pragma once

#include <utility>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
// The extents are empty for a scalar: KVMIX_SHARED(float, scale);
#define KVMIX_SHARED(type, name, ...) \
  __shared__ __align__(16) type name __VA_ARGS__
#define KVMIX_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char kvmix_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(kvmix_dynamic_shared)
#else
#include "tools/cuda_emulator/device_functions.h"
#define KVMIX_SHARED(type, name, ...)             \
  static char name##_key;                         \
  using name##_type = type __VA_ARGS__;           \
  name##_type& name = *static_cast<name##_type*>( \
      ::emu::SharedVariable(&name##_key, #name, sizeof(name##_type)))
#define KVMIX_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::emu::DynamicShared())
#endif

namespace kvmix {

// kernel<<<grid, block, smem, stream>>>(args...); arguments convert to the
// kernel's own types; returns what cudaGetLastError says.
template <typename... P, typename... A>
cudaError_t Launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem,
                   cudaStream_t stream, A&&... args) {
#ifdef __CUDACC__
  kernel<<<grid, block, smem, stream>>>(
      static_cast<P>(std::forward<A>(args))...);
#else
  ::emu::Launch(kernel, grid, block, smem, stream,
                static_cast<P>(std::forward<A>(args))...);
#endif
  return cudaGetLastError();
}

}  // namespace kvmix
