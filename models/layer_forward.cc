#include "models/layer_forward.h"

#include <algorithm>

#include "models/ops.h"

namespace kvmix {

void ForEachRow(int64_t num_rows, ThreadPool& threads,
                absl::FunctionRef<void(int64_t row)> body) {
  constexpr int64_t kRowsPerTask = 16;
  threads.ParallelFor(
      (num_rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
        const int64_t end = std::min(num_rows, (task + 1) * kRowsPerTask);
        for (int64_t row = task * kRowsPerTask; row < end; ++row) body(row);
      });
}

void Embed(const Transformer::Weights& weights,
           const std::vector<TokenAt>& tokens, float* hidden, float* cos,
           float* sin, ThreadPool& threads) {
  const int64_t size = weights.embedding->num_inputs();
  const int64_t half = static_cast<int64_t>(weights.rope.frequencies().size());
  ForEachRow(static_cast<int64_t>(tokens.size()), threads, [&](int64_t r) {
    weights.embedding->CopyWeightRow(tokens[r].token, hidden + r * size);
    weights.rope.Angles(tokens[r].position, cos + r * half, sin + r * half);
  });
}

void NormRows(const float* x, const std::vector<float>& weight, float eps,
              int64_t num_rows, float* out, ThreadPool& threads) {
  const int64_t size = static_cast<int64_t>(weight.size());
  ForEachRow(num_rows, threads, [&](int64_t r) {
    RmsNorm(x + r * size, weight.data(), eps, size, out + r * size);
  });
}

void ProjectHeads(const ModelConfig& config,
                  const Transformer::Weights::Layer& layer, const float* normed,
                  const float* cos, const float* sin, int64_t num_rows,
                  float* qkv, float* queries, float* keys, float* values,
                  ThreadPool& threads) {
  const int64_t head_dim = config.head_dim;
  const int64_t q_size = config.num_heads * head_dim;
  const int64_t kv_size = config.num_kv_heads * head_dim;
  layer.qkv->Forward(normed, num_rows, qkv, threads);
  ForEachRow(num_rows, threads, [&](int64_t r) {
    const float* from = qkv + r * (q_size + 2 * kv_size);
    float* q = queries + r * q_size;
    float* k = keys + r * kv_size;
    std::copy_n(from, q_size, q);
    std::copy_n(from + q_size, kv_size, k);
    std::copy_n(from + q_size + kv_size, kv_size, values + r * kv_size);
    const float* row_cos = cos + r * (head_dim / 2);
    const float* row_sin = sin + r * (head_dim / 2);
    NormAndRotateHeads(config, layer.query_norm, config.num_heads, row_cos,
                       row_sin, q);
    NormAndRotateHeads(config, layer.key_norm, config.num_kv_heads, row_cos,
                       row_sin, k);
  });
}

void AddProjection(const LinearLayer& layer, const float* x, int64_t num_rows,
                   float* scratch, float* hidden, ThreadPool& threads) {
  const int64_t size = layer.num_outputs();
  layer.Forward(x, num_rows, scratch, threads);
  ForEachRow(num_rows, threads, [&](int64_t r) {
    Add(scratch + r * size, size, hidden + r * size);
  });
}

void Activate(const float* gate_up, int64_t num_rows, int64_t inner_size,
              float* activated, ThreadPool& threads) {
  ForEachRow(num_rows, threads, [&](int64_t r) {
    const float* gate = gate_up + r * 2 * inner_size;
    SwiGlu(gate, gate + inner_size, inner_size, activated + r * inner_size);
  });
}

}  // namespace kvmix
