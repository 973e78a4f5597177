// The weights of a model on a CUDA device, in one allocation.
//
// Letters as in transformer_weights.h. Matrices are row-major [outputs,
// inputs] numbers of one type, vectors are float.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/cuda_attention_params.h"
#include "kvmix/base/device_memory.h"
#include "kvmix/base/thread_pool.h"
#include "models/cuda_ops.h"
#include "models/model_config.h"
#include "models/weight_source.h"

namespace kvmix {

int64_t BytesOf(CudaNumber type);

struct CudaWeights {
  struct Layer {
    const float* input_norm = nullptr;           // [C]
    const void* qkv = nullptr;                   // [(H + 2 G) D, C]: q, k, v
    const float* qkv_bias = nullptr;             // [(H + 2 G) D], or null
    const float* query_norm = nullptr;           // [D], or null
    const float* key_norm = nullptr;             // [D], or null
    const void* output = nullptr;                // [C, H D]
    const float* post_attention_norm = nullptr;  // [C]
    const void* gate_up = nullptr;               // [2 I, C]: gate, up
    const void* down = nullptr;                  // [C, I]
  };

  CudaNumber type = CudaNumber::kFloat;
  DeviceMemory memory;
  std::vector<Layer> layers;
  const float* final_norm = nullptr;  // [C]
  const void* embedding = nullptr;    // [vocab, C]
  const void* lm_head = nullptr;      // [vocab, C]; the embedding, if tied
  const float* cos = nullptr;         // [max_position, D / 2]
  const float* sin = nullptr;
};

// What CudaPrepareHeads takes of a layer of `weights`.
CudaHeads HeadsOf(const ModelConfig& config, const CudaWeights& weights,
                  const CudaWeights::Layer& layer);

// Errors: those of `source`, and ResourceExhausted.
absl::StatusOr<CudaWeights> LoadCudaWeights(const ModelConfig& config,
                                            const WeightSource& source,
                                            CudaNumber type,
                                            ThreadPool& threads);

}  // namespace kvmix
