#include "attention/token_eviction.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <vector>

#include "attention/attention_kernels.h"
#include "attention/eviction_step.h"
#include "hwy/aligned_allocator.h"
#include "kvmix/base/check.h"

namespace kvmix {
namespace {

// Queries of a chunk whose scores are held at a time.
constexpr int64_t kQueriesAtATime = 32;

// As the kernels of attention want them.
class AlignedFloats {
 public:
  void Reserve(size_t size) {
    if (size <= size_) return;
    floats_ = hwy::AllocateAligned<float>(size);
    if (floats_ == nullptr) throw std::bad_alloc();
    size_ = size;
  }
  float* get() { return floats_.get(); }

 private:
  hwy::AlignedFreeUniquePtr<float[]> floats_;
  size_t size_ = 0;
};

// Scores of some query rows with all tokens of a KV head.
class HeadScores {
 public:
  explicit HeadScores(const EvictionContext& context) : context_(context) {}

  // [rows, N]: row i * (H / G) + j is query head j of `kv_head` of query i,
  // queries [count, H, D] being those at positions [first_position,
  // first_position + count).
  const std::vector<float>& Compute(int kv_head, const float* queries,
                                    int64_t first_position, int64_t count,
                                    int num_heads, float scale) {
    const int dim = context_.shape.head_dim;
    const int group = num_heads / context_.shape.num_kv_heads;
    const KvStream& keys = context_.layer.keys[kv_head];
    const int64_t tokens = keys.num_tokens();
    const int rows = static_cast<int>(count) * group;
    rows_.resize(static_cast<size_t>(rows) * dim);
    for (int64_t i = 0; i < count; ++i) {
      const float* from =
          queries + (i * num_heads + int64_t{kv_head} * group) * dim;
      for (int k = 0; k < group * dim; ++k)
        rows_[i * group * dim + k] = from[k] * scale;
    }
    scores_.resize(static_cast<size_t>(rows) * tokens);
    tile_keys_.Reserve(static_cast<size_t>(dim) * kTileTokens);
    tile_scores_.Reserve(static_cast<size_t>(rows) * kTileTokens);
    for (int64_t t = 0; t < tokens; t += kTileTokens) {
      const int n =
          static_cast<int>(std::min<int64_t>(kTileTokens, tokens - t));
      keys.Read(t, n, tile_keys_.get(), kTileTokens);
      ScoreTile(rows_.data(), rows, dim, tile_keys_.get(), n,
                tile_scores_.get());
      for (int r = 0; r < rows; ++r)
        std::copy_n(tile_scores_.get() + r * kTileTokens, n,
                    scores_.data() + r * tokens + t);
    }
    Mask(kv_head, first_position, group, rows);
    return scores_;
  }

 private:
  void Mask(int kv_head, int64_t first_position, int group, int rows) {
    const auto& positions = context_.layer.heads[kv_head].positions;
    const int64_t tokens = static_cast<int64_t>(positions.size());
    for (int r = 0; r < rows; ++r)
      for (int64_t t = 0; t < tokens; ++t)
        if (positions[t] > first_position + r / group)
          scores_[r * tokens + t] = -std::numeric_limits<float>::infinity();
  }

  const EvictionContext& context_;
  std::vector<float> rows_, scores_;
  AlignedFloats tile_keys_, tile_scores_;
};

// received [N] += softmax of each row of scores [rows, N], times share.
void AddSoftmax(const std::vector<float>& scores, float share,
                std::pmr::vector<float>& received) {
  const size_t tokens = received.size();
  std::vector<float> weights(tokens);
  for (size_t first = 0; first < scores.size(); first += tokens) {
    const float* row = scores.data() + first;
    const float max = *std::max_element(row, row + tokens);
    double sum = 0;
    for (size_t t = 0; t < tokens; ++t) {
      weights[t] = std::exp(row[t] - max);
      sum += weights[t];
    }
    const float factor = static_cast<float>(share / sum);
    for (size_t t = 0; t < tokens; ++t) received[t] += weights[t] * factor;
  }
}

// What the policy is shown, and the memory behind it.
struct Shown {
  EvictionState state;
  std::vector<std::vector<float>> keys, values, scores;
};

Shown ShowCounts(const EvictionContext& context) {
  const KvCache::Layer& layer = context.layer;
  Shown shown;
  shown.state = {.layer = context.layer_index,
                 .num_layers = context.shape.num_layers,
                 .head_dim = context.shape.head_dim,
                 .tokens_seen = layer.tokens_seen,
                 .multiple = context.multiple,
                 .heads = {}};
  for (int h = 0; h < context.shape.num_kv_heads; ++h) {
    const KvStream& keys = layer.keys[h];
    const KvCache::Layer::HeadRecord& record = layer.heads[h];
    KVMIX_CHECK(keys.num_tokens() == layer.values[h].num_tokens() &&
                keys.num_tokens() ==
                    static_cast<int64_t>(record.positions.size()));
    shown.state.heads.push_back(
        {.num_tokens = keys.num_tokens(),
         .first_candidate = keys.num_sinks() + keys.demoted_tokens(),
         .demoted = keys.demoted_tokens(),
         .positions = record.positions.data(),
         .received =
             record.received.empty() ? nullptr : record.received.data()});
  }
  return shown;
}

void ShowSignals(const EvictionContext& context, Shown& shown) {
  const EvictionSignals signals = context.policy.signals();
  const KvCache::Layer& layer = context.layer;
  const int dim = context.shape.head_dim;
  const int heads = context.shape.num_kv_heads;
  HeadScores compute(context);
  for (int h = 0; h < heads; ++h) {
    EvictionHead& head = shown.state.heads[h];
    if (signals.keys) {
      shown.keys.emplace_back(head.num_tokens * dim);
      layer.keys[h].ReadTokens(0, head.num_tokens, shown.keys.back().data());
      head.keys = shown.keys.back().data();
    }
    if (signals.values) {
      shown.values.emplace_back(head.num_tokens * dim);
      layer.values[h].ReadTokens(0, head.num_tokens,
                                 shown.values.back().data());
      head.values = shown.values.back().data();
    }
    if (signals.query_window > 0) {
      const int64_t row = int64_t{layer.num_query_heads} * dim;
      const int64_t count =
          static_cast<int64_t>(layer.recent_queries.size()) / row;
      shown.scores.push_back(compute.Compute(
          h, layer.recent_queries.data(), layer.tokens_seen - count, count,
          layer.num_query_heads, layer.query_scale));
      head.scores = shown.scores.back().data();
      head.query_heads = layer.num_query_heads / heads;
      head.score_rows = count * head.query_heads;
    }
  }
}

// values without those at `dropped`; with `demotes` these come behind the first
// `demoted_end` instead.
template <typename T>
void Reorder(const TokenList& dropped, bool demotes, int64_t demoted_end,
             std::pmr::vector<T>& values) {
  if (values.empty()) return;
  std::vector<T> moved, stayed;
  auto next = dropped.begin();
  for (int64_t t = demoted_end; t < static_cast<int64_t>(values.size()); ++t) {
    const bool drop = next != dropped.end() && *next == t;
    (drop ? moved : stayed).push_back(values[t]);
    if (drop) ++next;
  }
  values.resize(demoted_end);
  if (demotes) values.insert(values.end(), moved.begin(), moved.end());
  values.insert(values.end(), stayed.begin(), stayed.end());
}

}  // namespace

void RecordAppended(const EvictionContext& context, int64_t num_tokens) {
  KvCache::Layer& layer = context.layer;
  const bool received = context.policy.signals().received;
  for (KvCache::Layer::HeadRecord& head : layer.heads) {
    for (int64_t t = 0; t < num_tokens; ++t)
      head.positions.push_back(layer.tokens_seen + t);
    if (received) head.received.resize(head.positions.size());
  }
  layer.tokens_seen += num_tokens;
}

void RecordQueries(const EvictionContext& context, const float* queries,
                   int num_heads, float scale) {
  KvCache::Layer& layer = context.layer;
  const EvictionSignals signals = context.policy.signals();
  const int64_t row = int64_t{num_heads} * context.shape.head_dim;
  const int64_t tokens = layer.open_chunk;
  if (signals.query_window > 0) {
    const int64_t taken = std::min(tokens, signals.query_window);
    auto& kept = layer.recent_queries;
    const int64_t total = static_cast<int64_t>(kept.size()) / row + taken;
    const int64_t excess = std::max<int64_t>(0, total - signals.query_window);
    kept.erase(kept.begin(), kept.begin() + excess * row);
    kept.insert(kept.end(), queries + (tokens - taken) * row,
                queries + tokens * row);
    layer.num_query_heads = num_heads;
    layer.query_scale = scale;
  }
  if (!signals.received) return;
  HeadScores compute(context);
  const int group = num_heads / context.shape.num_kv_heads;
  for (int h = 0; h < context.shape.num_kv_heads; ++h) {
    for (int64_t t = 0; t < tokens; t += kQueriesAtATime) {
      const int64_t count = std::min(kQueriesAtATime, tokens - t);
      AddSoftmax(
          compute.Compute(h, queries + t * row, layer.tokens_seen - tokens + t,
                          count, num_heads, scale),
          1.0f / static_cast<float>(group), layer.heads[h].received);
    }
  }
}

absl::Status Evict(const EvictionContext& context) {
  Shown shown = ShowCounts(context);
  if (!context.policy.WouldDrop(shown.state)) return absl::OkStatus();
  ShowSignals(context, shown);
  const std::vector<TokenList> dropped =
      context.policy.TokensToDrop(shown.state);
  absl::Status status = CheckDropped(shown.state, dropped);
  if (!status.ok()) return status;
  KvCache::Layer& layer = context.layer;
  for (int h = 0; h < context.shape.num_kv_heads; ++h) {
    if (dropped[h].empty()) continue;
    for (KvStream* stream : {&layer.keys[h], &layer.values[h]}) {
      if (context.demotes) {
        stream->Demote(dropped[h]);
      } else {
        stream->Remove(dropped[h]);
      }
    }
    const int64_t demoted_end = shown.state.heads[h].first_candidate;
    Reorder(dropped[h], context.demotes, demoted_end, layer.heads[h].positions);
    Reorder(dropped[h], context.demotes, demoted_end, layer.heads[h].received);
  }
  return absl::OkStatus();
}

}  // namespace kvmix
