// Small kernels that use between them everything the emulator offers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

namespace kvmix {

// y = x * w / rms(x) for each of `rows` rows of n numbers.
cudaError_t RunRowScale(const __half* x, const __half* w, __half* y, int rows,
                        int n, cudaStream_t s);
cudaError_t RunRowScale(const __nv_bfloat16* x, const __nv_bfloat16* w,
                        __nv_bfloat16* y, int rows, int n, cudaStream_t s);
// x [groups, 32] to 4-bit codes, 16 bytes a group, and (scale, minimum) in
// `meta`. histogram[0] sums the codes that are not 0, [1] is the most of them
// in a group. groups % 4 == 0.
cudaError_t RunPack4(const __half* x, void* packed, __half2* meta,
                     unsigned* histogram, int groups);
cudaError_t RunAtomics(float* sum, int* largest, const float* x, int n);
// c [16, 8] = a [16, k] * b [8, k]^T
cudaError_t RunOneTile(const __half* a, const __half* b, float* c, int k);
// What ldmatrix.trans gives: out [4, 32] of x [4, 8, 8]; and what movmatrix
// makes of ldmatrix's.
cudaError_t RunTransposed(const __half* x, unsigned* out, unsigned* moved);
cudaError_t RunAddOne(float* x, int n, cudaStream_t s);
// x[0] = 1 by way of `smem` bytes of dynamic shared memory.
cudaError_t RunFill(float* x, dim3 grid, dim3 block, size_t smem);
cudaError_t AllowFill(size_t smem);

}  // namespace kvmix
