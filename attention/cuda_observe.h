// Kernels that gather what eviction policies go by: attention that tokens have
// received, and scores of the newest queries. Each call launches on `stream`
// and returns the launch's error.
#pragma once

#include <cuda_runtime_api.h>

#include "attention/cuda_attention_params.h"

namespace kvmix {

// One chunk's queries, after attention.
struct CudaObservation {
  CudaLayer layer;
  const float* queries = nullptr;  // [R, H, D]
  int64_t stride = 0;              // from one token's to the next one's
  int num_heads = 0;               // H
  float scale = 0;
  int max_queries = 0;  // of an item
  // At least the tokens of any stream; launches depend on it.
  int max_stored = 0;
  // Largest score, and sum of exp(score - it), of ranges of the cache:
  // [R][H][kCudaScoreRanges][2].
  float* partials = nullptr;
  // [items][G][received_stride]: of items of more than one token, whose streams
  // have no room for them yet; those of one token add in their place.
  float* received = nullptr;
  int received_stride = 0;
};
inline constexpr int kCudaScoreRanges = 16;

// Adds the softmax over the cache of every query head's scores to what tokens
// have received; new ones start with 0.
cudaError_t CudaAddReceived(const CudaObservation& observation,
                            cudaStream_t stream);

// The newest queries of sequences, [sequence][window][H][D]: that of token n of
// the text lies at n % window.
cudaError_t CudaKeepQueries(const CudaObservation& observation, float* recent,
                            int window, cudaStream_t stream);

// Scores of `count` queries, newest last, of item `item`, its chunk finished,
// with all tokens: out [G][count * H / G][stride]. newest: token of the text.
// Nothing is masked.
cudaError_t CudaScoreQueries(const CudaLayer& layer, int item,
                             const float* recent, int window, int count,
                             int newest, int num_heads, float scale, int stride,
                             float* out, cudaStream_t stream);

}  // namespace kvmix
