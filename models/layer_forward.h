// The steps of a layer's forward pass that the runtime and the profiler share,
// on M rows of activations.
//
// Letters as in transformer_weights.h. Rows are independent: neither M nor the
// number of threads changes a row's result.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kvmix/base/thread_pool.h"
#include "models/linear.h"
#include "models/model_config.h"
#include "models/transformer_weights.h"

namespace kvmix {

// body(row) for every row, on all threads.
void ForEachRow(int64_t num_rows, ThreadPool& threads,
                absl::FunctionRef<void(int64_t row)> body);

struct TokenAt {
  int32_t token;
  int64_t position;
};

// hidden [M, C]: the tokens' embeddings. cos, sin [M, D / 2]: RoPE's angles.
void Embed(const Transformer::Weights& weights,
           const std::vector<TokenAt>& tokens, float* hidden, float* cos,
           float* sin, ThreadPool& threads);

// RMSNorm of rows of weight.size() elements.
void NormRows(const float* x, const std::vector<float>& weight, float eps,
              int64_t num_rows, float* out, ThreadPool& threads);

// From the normed input [M, C]: qkv [M, (H + 2 G) D] as projected, and of that
// queries [M, H, D] and keys [M, G, D] normed and rotated, and values [M, G,
// D].
void ProjectHeads(const ModelConfig& config,
                  const Transformer::Weights::Layer& layer, const float* normed,
                  const float* cos, const float* sin, int64_t num_rows,
                  float* qkv, float* queries, float* keys, float* values,
                  ThreadPool& threads);

// hidden += layer(x). scratch: [M, layer.num_outputs()].
void AddProjection(const LinearLayer& layer, const float* x, int64_t num_rows,
                   float* scratch, float* hidden, ThreadPool& threads);

// activated [M, I] = silu(gate) * up, of gate_up [M, 2 I].
void Activate(const float* gate_up, int64_t num_rows, int64_t inner_size,
              float* activated, ThreadPool& threads);

}  // namespace kvmix
