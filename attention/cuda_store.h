// Kernels that put keys and values into the device KV cache. Each call launches
// on `stream` and returns the launch's error.
#pragma once

#include <cuda_runtime_api.h>

#include "attention/cuda_attention_params.h"

namespace kvmix {

// Rounds a chunk's keys and values, [R, G, D], to half and stores them: those
// of items of one token in their place, where flush_before_attention also packs
// what the counts say, in the same kernel; those of longer items in the chunk's
// buffer.
cudaError_t CudaAppend(const CudaLayer& layer, const CudaRows& keys,
                       const CudaRows& values, int num_rows, bool any_single,
                       cudaStream_t stream);

// Packs what the counts say and CudaAppend did not, and moves the rest of the
// chunk's buffer to its place. max_tokens: of an item.
cudaError_t CudaFinishChunk(const CudaLayer& layer, int max_tokens,
                            cudaStream_t stream);

}  // namespace kvmix
