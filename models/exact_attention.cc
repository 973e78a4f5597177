#include "models/exact_attention.h"

#include <algorithm>

#include "models/ops.h"

namespace kvmix {
namespace {

constexpr int64_t kWidth = PanelMatrix::kWidth;

// Queries, and keys, that are worked on together. A multiple of the panel
// width, so that a tile of keys is whole panels.
constexpr int64_t kTile = 96;

// Rows of attention weights are an odd number of cache lines apart, or a walk
// down a column would hit one set of the cache.
int64_t RowStride(int64_t num_tokens) { return (num_tokens / 32) * 32 + 48; }

// c (+)= a b for columns [0, b.columns()) and inner steps [first, first +
// inner) of b.
void Multiply(const LeftOperand& a, int64_t num_rows, int64_t first,
              int64_t inner, const PanelMatrix& b, bool accumulate, float* c,
              int64_t c_stride) {
  for (int64_t p = 0; p < b.num_panels(); ++p) {
    float* to = c + p * kWidth;
    for (int64_t r = 0; r < num_rows && !accumulate; ++r)
      std::fill_n(to + r * c_stride, b.width(p), 0.0f);
    MultiplyPanel(a, num_rows, inner, b.panel(p) + first * kWidth, b.width(p),
                  to, c_stride);
  }
}

// c = a b for columns [first, last) of b; first is a multiple of 32, and column
// n goes to c[n].
void MultiplyColumns(const LeftOperand& a, int64_t num_rows,
                     const PanelMatrix& b, int64_t first, int64_t last,
                     float* c, int64_t c_stride) {
  for (int64_t n = first; n < last; n += kWidth) {
    const int64_t width = std::min(kWidth, last - n);
    for (int64_t r = 0; r < num_rows; ++r)
      std::fill_n(c + r * c_stride + n, width, 0.0f);
    MultiplyPanel(a, num_rows, b.inner(), b.panel(n / kWidth), width, c + n,
                  c_stride);
  }
}

}  // namespace

ExactAttention::ExactAttention(const ModelConfig& config, int64_t num_tokens,
                               ThreadPool& threads)
    : num_heads_(config.num_heads),
      num_kv_heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      sliding_window_(config.sliding_window),
      scale_(AttentionScale(config)),
      num_tokens_(num_tokens),
      num_tiles_((num_tokens + kTile - 1) / kTile),
      stride_(RowStride(num_tokens)),
      threads_(threads),
      key_columns_(num_kv_heads_),
      key_rows_(num_kv_heads_),
      value_columns_(num_kv_heads_),
      value_rows_(num_kv_heads_),
      tile_weights_(threads.num_threads()) {}

int64_t ExactAttention::FirstVisible(int64_t t) const {
  return sliding_window_ == 0 ? 0
                              : std::max<int64_t>(0, t + 1 - sliding_window_);
}

ExactAttention::Tile ExactAttention::QueryTile(int64_t index) const {
  const int64_t first = index * kTile;
  return {.first = first,
          .last = std::min(first + kTile, num_tokens_),
          .first_key = FirstVisible(first) / kTile * kTile};
}

void ExactAttention::PackKeysAndValues(const float* keys, const float* values) {
  const int64_t stride = num_kv_heads_ * head_dim_;
  threads_.ParallelFor(num_kv_heads_, [&](int64_t g, int) {
    const auto pack = [&](const float* x, PanelMatrix& columns,
                          PanelMatrix& rows) {
      columns.Resize(head_dim_, num_tokens_);
      columns.SetColumns(0, num_tokens_, x + g * head_dim_, stride);
      rows.Resize(num_tokens_, head_dim_);
      rows.SetRows(0, num_tokens_, x + g * head_dim_, stride);
    };
    pack(keys, key_columns_[g], key_rows_[g]);
    pack(values, value_columns_[g], value_rows_[g]);
  });
}

void ExactAttention::Weights(const Tile& tile, int h, const float* queries,
                             float* w) const {
  const int g = h / (num_heads_ / num_kv_heads_);
  const int64_t q_stride = num_heads_ * head_dim_;
  MultiplyColumns({queries + tile.first * q_stride + h * head_dim_, q_stride},
                  tile.last - tile.first, key_columns_[g], tile.first_key,
                  tile.last, w, stride_);
  for (int64_t t = tile.first; t < tile.last; ++t) {
    float* row = w + (t - tile.first) * stride_;
    const int64_t begin = FirstVisible(t);
    Softmax(row + begin, t + 1 - begin, scale_);
    std::fill(row + tile.first_key, row + begin, 0.0f);
    std::fill(row + t + 1, row + tile.last, 0.0f);
  }
}

void ExactAttention::Forward(const float* queries, const float* keys,
                             const float* values, float* out) {
  PackKeysAndValues(keys, values);
  const int64_t out_stride = num_heads_ * head_dim_;
  // Late tiles see the most keys: first, so that threads end together.
  threads_.ParallelFor(num_tiles_ * num_heads_, [&](int64_t task, int thread) {
    const Tile tile = QueryTile(num_tiles_ - 1 - task / num_heads_);
    const int h = static_cast<int>(task % num_heads_);
    const int g = h / (num_heads_ / num_kv_heads_);
    tile_weights_[thread].Reserve(kTile * stride_);
    float* w = tile_weights_[thread].get();
    Weights(tile, h, queries, w);
    Multiply({w + tile.first_key, stride_}, tile.last - tile.first,
             tile.first_key, tile.last - tile.first_key, value_rows_[g],
             /*accumulate=*/false,
             out + tile.first * out_stride + h * head_dim_, out_stride);
  });
}

void ExactAttention::BackwardHead(int h, const float* queries,
                                  const float* dout, float* dqueries,
                                  float* dkeys, float* dvalues) {
  const int group_size = num_heads_ / num_kv_heads_;
  const int g = h / group_size;
  const int64_t q_stride = num_heads_ * head_dim_;
  const int64_t kv_stride = num_kv_heads_ * head_dim_;
  weights_.Reserve(num_tokens_ * stride_);
  dscores_.Reserve(num_tokens_ * stride_);
  query_rows_.Resize(num_tokens_, head_dim_);
  query_rows_.SetRows(0, num_tokens_, queries + h * head_dim_, q_stride);
  dout_rows_.Resize(num_tokens_, head_dim_);
  dout_rows_.SetRows(0, num_tokens_, dout + h * head_dim_, q_stride);

  threads_.ParallelFor(num_tiles_, [&](int64_t task, int) {
    const Tile tile = QueryTile(num_tiles_ - 1 - task);
    const int64_t rows = tile.last - tile.first;
    float* w = weights_.get() + tile.first * stride_;
    float* ds = dscores_.get() + tile.first * stride_;
    const int64_t offset = tile.first * q_stride + h * head_dim_;
    Weights(tile, h, queries, w);
    MultiplyColumns({dout + offset, q_stride}, rows, value_columns_[g],
                    tile.first_key, tile.last, ds, stride_);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = r * stride_ + tile.first_key;
      SoftmaxGradient(w + row, tile.last - tile.first_key, scale_, ds + row);
    }
    if (dqueries != nullptr) {
      Multiply({ds + tile.first_key, stride_}, rows, tile.first_key,
               tile.last - tile.first_key, key_rows_[g], /*accumulate=*/false,
               dqueries + offset, q_stride);
    }
  });

  // Tiles of keys: the sums over queries. A query tile that starts at a later
  // key did not see these.
  threads_.ParallelFor(num_tiles_, [&](int64_t task, int) {
    const int64_t first = task * kTile;
    const int64_t rows = std::min(kTile, num_tokens_ - first);
    int64_t end = task + 1;
    while (end < num_tiles_ && QueryTile(end).first_key <= first) ++end;
    const int64_t inner = std::min(end * kTile, num_tokens_) - first;
    const bool accumulate = h % group_size != 0;
    const int64_t from = first * stride_ + first;
    const int64_t to = first * kv_stride + g * head_dim_;
    Multiply({weights_.get() + from, 1, stride_}, rows, first, inner,
             dout_rows_, accumulate, dvalues + to, kv_stride);
    Multiply({dscores_.get() + from, 1, stride_}, rows, first, inner,
             query_rows_, accumulate, dkeys + to, kv_stride);
  });
}

void ExactAttention::Backward(const float* queries, const float* dout,
                              float* dqueries, float* dkeys, float* dvalues) {
  for (int h = 0; h < num_heads_; ++h)
    BackwardHead(h, queries, dout, dqueries, dkeys, dvalues);
}

}  // namespace kvmix
