// Kernels of attention over the device KV cache. Each call launches on `stream`
// and returns the launch's error.
//
//   decode   every item brings one token: its query heads of one KV head are
//            one operand of the tensor cores, codes and unquantized numbers are
//            the other one, as they lie in memory
//   tiled    any chunk and any format: tiles of 32 tokens are turned into half
//            in shared memory, for 64 query rows at a time (16 where there are
//            no more)
// Both cut the cache into `splits` ranges ("split-KV"); partial results meet
// in CudaCombine.
#pragma once

#include <cuda_runtime_api.h>

#include "attention/cuda_attention_params.h"

namespace kvmix {

// Whether decode has a kernel for these formats.
bool CudaDecodeReads(const CudaFormat& key, const CudaFormat& value,
                     int head_dim);
// Its name: the bits it is compiled for, or "any bits".
const char* CudaDecodeName(const CudaFormat& key, const CudaFormat& value,
                           int head_dim);

cudaError_t CudaDecodeAttention(const CudaAttentionParams& params,
                                cudaStream_t stream);

inline constexpr int kCudaMaxTiledHeadDim = 256;
cudaError_t CudaTiledAttention(const CudaAttentionParams& params,
                               cudaStream_t stream);

// out = the splits of `rows` rows of [H, D] as one.
cudaError_t CudaCombine(const CudaAttentionParams& params, int rows,
                        cudaStream_t stream);

}  // namespace kvmix
