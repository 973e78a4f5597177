// Causal attention over float keys and values that lie in memory as the
// projections left them, with its gradients: what the profiler sees in place of
// a cache.
//
// T = tokens, H = query heads, G = KV heads, D = head_dim; query head h reads
// KV head h / (H / G). Scores of a tile of queries are one matrix product; the
// backward pass keeps the [T, T] weights of one head at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "kvmix/base/thread_pool.h"
#include "models/aligned_buffer.h"
#include "models/matmul.h"
#include "models/model_config.h"

namespace kvmix {

class ExactAttention {
 public:
  // Attends within num_tokens tokens, and if config.sliding_window is not 0,
  // only to that many last ones.
  ExactAttention(const ModelConfig& config, int64_t num_tokens,
                 ThreadPool& threads);

  // queries, out [T, H, D]; keys, values [T, G, D].
  void Forward(const float* queries, const float* keys, const float* values,
               float* out);

  // Gradients of what the last Forward read from that of its `out`. queries as
  // there. dqueries may be null.
  void Backward(const float* queries, const float* dout, float* dqueries,
                float* dkeys, float* dvalues);

 private:
  // Queries [first, last) see keys within [first_key, last).
  struct Tile {
    int64_t first;
    int64_t last;
    int64_t first_key;
  };
  Tile QueryTile(int64_t index) const;
  // First token that query t sees.
  int64_t FirstVisible(int64_t t) const;
  void PackKeysAndValues(const float* keys, const float* values);
  // Attention weights of a tile of head h into w[query - tile.first][key],
  // columns from tile.first_key on. Keys a query does not see get 0.
  void Weights(const Tile& tile, int h, const float* queries, float* w) const;
  void BackwardHead(int h, const float* queries, const float* dout,
                    float* dqueries, float* dkeys, float* dvalues);

  const int num_heads_;
  const int num_kv_heads_;
  const int64_t head_dim_;
  const int64_t sliding_window_;
  const float scale_;
  const int64_t num_tokens_;
  const int64_t num_tiles_;
  const int64_t stride_;  // of rows of attention weights
  ThreadPool& threads_;

  // For each KV head: keys and values as columns [D, T] and as rows [T, D].
  std::vector<PanelMatrix> key_columns_, key_rows_;
  std::vector<PanelMatrix> value_columns_, value_rows_;
  std::vector<AlignedBuffer> tile_weights_;  // per thread, [kTile, stride]
  // Of one head: weights, gradients of scores [T, stride], queries and output
  // gradients as rows [T, D].
  AlignedBuffer weights_, dscores_;
  PanelMatrix query_rows_, dout_rows_;
};

}  // namespace kvmix
