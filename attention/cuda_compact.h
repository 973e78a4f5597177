// Kernels that take tokens out of the device KV cache, and read tokens back.
// Each call launches on `stream` and returns the launch's error.
#pragma once

#include <cuda_runtime_api.h>

#include "attention/cuda_attention_params.h"

namespace kvmix {

// A stream once tokens have left it, in memory of its own. Of its positions
// (tokens behind the sinks)
//   [0, whole)             lie as they lay: whole blocks are copied
//   [whole, requantized)   were packed, and are packed anew
//   [requantized, packed)  are rounded to half, and then packed
//   [packed, ...)          are half
// as KvStream::Remove and KvStream::QuantizeOldest leave them.
struct CudaCompaction {
  CudaPlace to;
  // [tokens before]: goes to to.received; null: nothing.
  const float* received = nullptr;
  int tokens = 0;  // sinks included
  int whole = 0, requantized = 0, packed = 0;
};

// Of item `item`. streams: [2][G], keys first. kept: [G][stride], token n of KV
// head h was token kept[h * stride + n]. The old streams stay as they are, and
// layer.places must name them until this has run.
cudaError_t CudaCompact(const CudaLayer& layer, int item,
                        const CudaCompaction* streams, const int* kept,
                        int stride, cudaStream_t stream);

// The numbers of all tokens of one side of item `item`, packed ones decoded:
// out [G][stride][D].
cudaError_t CudaReadTokens(const CudaLayer& layer, bool keys, int item,
                           int stride, float* out, cudaStream_t stream);

}  // namespace kvmix
