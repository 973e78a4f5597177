// Attention in tiles, with an online softmax (FlashAttention: Dao et al., arXiv
// 2205.14135).
//
// A task is some queries of one sequence, all query heads of one KV head, and a
// range of cached tokens, which it walks in tiles. Many rows: a tile's keys and
// values are decoded to floats once, for all of them. A few: kernels compute
// with the codes as they lie (packed_attention.h).
// A chunk of few queries is cut along the cache ("split-KV"), so that one long
// sequence keeps all threads busy; the ranges' partial results are combined in
// order. Tasks, ranges and tiles follow from the sequence alone, never from the
// threads or the batch.
#include "attention/attention.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "absl/strings/str_join.h"
#include "attention/attention_kernels.h"
#include "attention/kv_cache_layer.h"
#include "attention/packed_attention.h"
#include "hwy/aligned_allocator.h"
#include "kvmix/base/check.h"

namespace kvmix {
namespace {

constexpr int kRowsPerTask = 64;        // query rows of a task, about
constexpr int kMaxQueriesOfSplit = 16;  // more queries: no split-KV
constexpr int64_t kSplitTokens = 1024;

struct Task {
  int item = 0;
  int kv_head = 0;
  int64_t first_query = 0, num_queries = 0;  // of the chunk
  int64_t first_token = 0, last_token = 0;   // of the cache, [first, last)
  int64_t partial = -1;  // first row of its partial results; -1: none
};

// What a range of the cache adds to some rows, before normalisation.
struct Partials {
  std::vector<float> max, sum;  // [rows]
  std::vector<float> out;       // [rows, D]
};

// Of one call, its memory kept for the next one.
struct Workspace {
  std::vector<Task> tasks;
  std::vector<int64_t> walks;   // ends of walks, in tasks
  std::vector<int64_t> splits;  // first tasks of rows that were cut
  Partials partials;
};

// Memory of one thread, reused.
class Scratch {
 public:
  float* queries() { return part_[0].get(); }  // [rows, D]
  float* keys() { return part_[1].get(); }     // [D, kTileTokens]
  float* values() { return part_[2].get(); }   // [kTileTokens, D]
  float* scores() { return part_[3].get(); }   // [rows, kPackedStride]
  float* out() { return part_[4].get(); }      // [rows, D]
  float* max() { return part_[5].get(); }      // [rows]
  float* sum() { return part_[6].get(); }      // [rows]
  float* rescale() { return part_[7].get(); }  // [rows]

  void Reserve(int rows, int head_dim) {
    const size_t r = rows, d = head_dim;
    const size_t sizes[] = {
        r * d, d * kTileTokens, d * kTileTokens, r * kPackedStride, r * d, r, r,
        r};
    for (int i = 0; i < kParts; ++i) {
      if (sizes[i] <= size_[i]) continue;
      part_[i] = hwy::AllocateAligned<float>(sizes[i]);
      KVMIX_CHECK(part_[i] != nullptr) << "out of memory";
      std::fill_n(part_[i].get(), sizes[i], 0.0f);
      size_[i] = sizes[i];
    }
  }

 private:
  static constexpr int kParts = 8;
  hwy::AlignedFreeUniquePtr<float[]> part_[kParts];
  size_t size_[kParts] = {};
};

Scratch& ThreadScratch() {
  thread_local Scratch scratch;
  return scratch;
}

// The end of the tile that starts at `first`: whole blocks while they fit, so
// that none is decoded twice.
int64_t TileEnd(const KvStream& keys, int64_t first, int64_t limit) {
  limit = std::min(limit, first + kTileTokens);
  int64_t end = first;
  while (end < limit) {
    const KvStream::Piece piece = keys.PieceAt(end);
    int64_t n = std::min(piece.num_tokens, limit - end);
    if (n < piece.num_tokens && piece.block != nullptr) {
      const int64_t whole = n - (piece.first + n) % piece.codec->block_tokens();
      if (whole > 0) n = whole;
      if (whole <= 0 && end > first) break;
      return end + n;
    }
    end += n;
  }
  return end;
}

class LayerAttention {
 public:
  LayerAttention(int layer, absl::Span<const AttentionItem> batch,
                 const AttentionOptions& options, ThreadPool& threads,
                 Workspace& workspace)
      : layer_(layer),
        batch_(batch),
        options_(options),
        threads_(threads),
        tasks_(workspace.tasks),
        walks_(workspace.walks),
        splits_(workspace.splits),
        partials_(workspace.partials) {
    tasks_.clear();
    walks_.clear();
    splits_.clear();
  }

  void Run() {
    if (batch_.empty()) return;
    for (int i = 0; i < static_cast<int>(batch_.size()); ++i) Plan(i);
    partials_.max.resize(num_partials_);
    partials_.sum.resize(num_partials_);
    partials_.out.resize(num_partials_ * batch_[0].cache->shape().head_dim);
    PlanWalks();
    threads_.ParallelFor(static_cast<int64_t>(walks_.size()),
                         [this](int64_t walk, int) { Walk(walk); });
    threads_.ParallelFor(
        static_cast<int64_t>(splits_.size()),
        [this](int64_t split, int) { Combine(splits_[split]); });
  }

 private:
  void Plan(int item);
  void PlanWalks();
  void Walk(int64_t walk);
  void Attend(const Task& task);
  void Combine(int64_t first);
  void ReadQueries(const Task& task, Scratch& scratch) const;
  void MaskTile(const Task& task, int64_t first, int64_t last, float* scores,
                int64_t stride) const;
  void AttendDecoded(const Task& task, Scratch& s) const;
  void AttendPacked(const Task& task, Scratch& s) const;

  const CacheShape& ShapeOf(const Task& task) const {
    return batch_[task.item].cache->shape();
  }
  // Query heads of a KV head.
  int GroupOf(const Task& task) const {
    return options_.num_heads / ShapeOf(task).num_kv_heads;
  }
  int RowsOf(const Task& task) const {
    return static_cast<int>(task.num_queries) * GroupOf(task);
  }
  // Whether a chunk has so few rows that kernels compute with the codes. It is
  // the chunk's to say: of a long one, the last task may have as few.
  bool IsPacked(const Task& task) const {
    return batch_[task.item].num_tokens * GroupOf(task) <= kMaxPackedRows;
  }
  // Tokens that query t of the chunk sees: [first, last).
  int64_t LastVisible(const AttentionItem& item, int kv_head, int64_t t) const {
    return item.cache->layer(layer_).keys[kv_head].num_tokens() -
           item.num_tokens + t + 1;
  }
  int64_t FirstVisible(const AttentionItem& item, int kv_head,
                       int64_t t) const {
    return options_.sliding_window == 0
               ? 0
               : std::max<int64_t>(0, LastVisible(item, kv_head, t) -
                                          options_.sliding_window);
  }
  // Where row r of a task lies in queries and out, [T, H, D].
  int64_t OffsetOf(const Task& task, int r) const {
    const int group = GroupOf(task);
    return ((task.first_query + r / group) * options_.num_heads +
            task.kv_head * group + r % group) *
           ShapeOf(task).head_dim;
  }

  const int layer_;
  const absl::Span<const AttentionItem> batch_;
  const AttentionOptions& options_;
  ThreadPool& threads_;
  std::vector<Task>& tasks_;
  std::vector<int64_t>& walks_;
  std::vector<int64_t>& splits_;
  Partials& partials_;
  int64_t num_partials_ = 0;  // rows
};

void LayerAttention::Plan(int index) {
  const AttentionItem& item = batch_[index];
  const CacheShape& shape = item.cache->shape();
  KVMIX_CHECK(options_.num_heads % shape.num_kv_heads == 0);
  KVMIX_CHECK(shape.head_dim == batch_[0].cache->shape().head_dim);
  const int group = options_.num_heads / shape.num_kv_heads;
  KVMIX_CHECK(options_.sliding_window == 0 || item.cache->keeps_all_tokens());
  const int64_t step = std::max(1, kRowsPerTask / group);
  for (int head = 0; head < shape.num_kv_heads; ++head) {
    const int64_t num_tokens =
        item.cache->layer(layer_).keys[head].num_tokens();
    KVMIX_CHECK(item.num_tokens > 0 && item.num_tokens <= num_tokens);
    const int64_t range =
        item.num_tokens > kMaxQueriesOfSplit ? num_tokens : kSplitTokens;
    for (int64_t query = 0; query < item.num_tokens; query += step) {
      Task task{.item = index,
                .kv_head = head,
                .first_query = query,
                .num_queries = std::min(step, item.num_tokens - query)};
      int64_t begin = FirstVisible(item, head, query);
      // Whole tiles, so that a window's tokens add up in an order that does not
      // depend on the chunk.
      if (!IsPacked(task)) begin -= begin % kTileTokens;
      const int64_t end = LastVisible(item, head, query + task.num_queries - 1);
      const bool split = begin / range != (end - 1) / range;
      if (split) splits_.push_back(static_cast<int64_t>(tasks_.size()));
      for (int64_t first = begin; first < end; first = task.last_token) {
        task.first_token = first;
        task.last_token = std::min(end, (first / range + 1) * range);
        if (split) {
          task.partial = num_partials_;
          num_partials_ += RowsOf(task);
        }
        tasks_.push_back(task);
      }
    }
  }
}

// A walk is neighbouring ranges of the cache for one thread: what a range's
// last tile prefetches is then what the thread reads next. Walks get shorter
// towards the end, so that threads finish together.
void LayerAttention::PlanWalks() {
  const auto num_tasks = static_cast<int64_t>(tasks_.size());
  const int64_t shares = 2 * threads_.num_threads();
  for (int64_t task = 0; task < num_tasks;) {
    const int64_t size = std::max<int64_t>(1, (num_tasks - task) / shares);
    const int64_t limit = std::min(num_tasks, task + size);
    do ++task;
    while (task < limit && tasks_[task].partial >= 0);
    walks_.push_back(task);
  }
}

void LayerAttention::Walk(int64_t walk) {
  const int64_t first = walk == 0 ? 0 : walks_[walk - 1];
  const Task& task = tasks_[first];
  if (IsPacked(task)) {
    const KvCache::Layer& layer = batch_[task.item].cache->layer(layer_);
    const int head_dim = ShapeOf(task).head_dim;
    PrefetchTokens(layer.keys[task.kv_head], task.first_token, head_dim);
    PrefetchTokens(layer.values[task.kv_head], task.first_token, head_dim);
  }
  for (int64_t t = first; t < walks_[walk]; ++t) Attend(tasks_[t]);
}

// Queries times the scale, and times log2(e): the softmax is in base 2.
void LayerAttention::ReadQueries(const Task& task, Scratch& scratch) const {
  const float scale = options_.scale * static_cast<float>(M_LOG2E);
  const int head_dim = ShapeOf(task).head_dim;
  for (int r = 0; r < RowsOf(task); ++r) {
    const float* query = batch_[task.item].queries + OffsetOf(task, r);
    float* row = scratch.queries() + r * head_dim;
    for (int d = 0; d < head_dim; ++d) row[d] = query[d] * scale;
  }
}

void LayerAttention::MaskTile(const Task& task, int64_t first, int64_t last,
                              float* scores, int64_t stride) const {
  const AttentionItem& item = batch_[task.item];
  const int group = GroupOf(task);
  const int padded = PaddedTokens(static_cast<int>(last - first));
  const int64_t last_query = task.first_query + task.num_queries - 1;
  if (padded == last - first &&
      first >= FirstVisible(item, task.kv_head, last_query) &&
      last <= LastVisible(item, task.kv_head, task.first_query))
    return;  // every query sees all of it
  for (int r = 0; r < RowsOf(task); ++r, scores += stride) {
    const int64_t query = task.first_query + r / group;
    const int64_t from =
        std::clamp(FirstVisible(item, task.kv_head, query) - first, int64_t{0},
                   last - first);
    const int64_t to =
        std::clamp(LastVisible(item, task.kv_head, query) - first, int64_t{0},
                   last - first);
    std::fill(scores, scores + from, kMaskedScore);
    std::fill(scores + to, scores + padded, kMaskedScore);
  }
}

// Tiles of keys and values in float, decoded once for all rows.
void LayerAttention::AttendDecoded(const Task& task, Scratch& s) const {
  const int head_dim = ShapeOf(task).head_dim, rows = RowsOf(task);
  const KvCache::Layer& layer = batch_[task.item].cache->layer(layer_);
  const KvStream& keys = layer.keys[task.kv_head];
  const KvStream& values = layer.values[task.kv_head];
  for (int64_t first = task.first_token; first < task.last_token;) {
    const int64_t last = TileEnd(keys, first, task.last_token);
    const int tokens = static_cast<int>(last - first);
    keys.Read(first, tokens, s.keys(), kTileTokens);
    ScoreTile(s.queries(), rows, head_dim, s.keys(), tokens, s.scores());
    MaskTile(task, first, last, s.scores(), kTileTokens);
    SoftmaxTile(s.scores(), kTileTokens, rows, tokens, s.max(), s.sum(),
                s.rescale());
    values.Read(first, tokens, s.values(), head_dim);
    AccumulateTile(s.scores(), s.rescale(), rows, s.values(), tokens, head_dim,
                   s.out());
    first = last;
  }
}

// Keys and values as they lie in the cache, for a few rows.
void LayerAttention::AttendPacked(const Task& task, Scratch& s) const {
  const int head_dim = ShapeOf(task).head_dim, rows = RowsOf(task);
  const KvCache::Layer& layer = batch_[task.item].cache->layer(layer_);
  const KvStream& keys = layer.keys[task.kv_head];
  const KvStream& values = layer.values[task.kv_head];
  const Rows queries{s.queries(), rows, head_dim};
  const Rows out{s.out(), rows, head_dim};
  for (int64_t first = task.first_token; first < task.last_token;) {
    const int64_t last = PackedTileEnd(keys, first, task.last_token);
    ScoreTokens(keys, options_.arithmetic, first, last, queries, s.scores());
    MaskTile(task, first, last, s.scores(), kPackedStride);
    SoftmaxTile(s.scores(), kPackedStride, rows, static_cast<int>(last - first),
                s.max(), s.sum(), s.rescale());
    for (int r = 0; r < rows; ++r) {
      const float rescale = s.rescale()[r];
      if (rescale == 1.0f) continue;
      float* row = s.out() + r * head_dim;
      for (int d = 0; d < head_dim; ++d) row[d] *= rescale;
    }
    AccumulateTokens(values, options_.arithmetic, first, last, s.scores(), out);
    first = last;
  }
}

void LayerAttention::Attend(const Task& task) {
  const int head_dim = ShapeOf(task).head_dim, rows = RowsOf(task);
  Scratch& s = ThreadScratch();
  s.Reserve(rows, head_dim);
  ReadQueries(task, s);
  std::fill_n(s.max(), rows, kNoScore);
  std::fill_n(s.sum(), rows, 0.0f);
  std::fill_n(s.out(), int64_t{rows} * head_dim, 0.0f);
  if (IsPacked(task)) {
    AttendPacked(task, s);
  } else {
    AttendDecoded(task, s);
  }

  if (task.partial >= 0) {
    std::copy_n(s.max(), rows, partials_.max.data() + task.partial);
    std::copy_n(s.sum(), rows, partials_.sum.data() + task.partial);
    std::copy_n(s.out(), int64_t{rows} * head_dim,
                partials_.out.data() + task.partial * head_dim);
    return;
  }
  for (int r = 0; r < rows; ++r) {
    float* out = batch_[task.item].out + OffsetOf(task, r);
    const float* row = s.out() + r * head_dim;
    for (int d = 0; d < head_dim; ++d) out[d] = row[d] / s.sum()[r];
  }
}

// Combines the ranges of the rows of task `first`, which follow one another.
void LayerAttention::Combine(int64_t first) {
  const Task& task = tasks_[first];
  const auto num_tasks = static_cast<int64_t>(tasks_.size());
  int64_t end = first + 1;
  while (end < num_tasks && tasks_[end].item == task.item &&
         tasks_[end].kv_head == task.kv_head &&
         tasks_[end].first_query == task.first_query)
    ++end;
  const int head_dim = ShapeOf(task).head_dim;
  for (int r = 0; r < RowsOf(task); ++r) {
    float max = kNoScore, sum = 0;
    for (int64_t i = first; i < end; ++i)
      max = std::max(max, partials_.max[tasks_[i].partial + r]);
    float* out = batch_[task.item].out + OffsetOf(task, r);
    std::fill_n(out, head_dim, 0.0f);
    for (int64_t i = first; i < end; ++i) {
      const int64_t row = tasks_[i].partial + r;
      const float weight = std::exp2(partials_.max[row] - max);
      const float* const partial = partials_.out.data() + row * head_dim;
      sum += partials_.sum[row] * weight;
      for (int d = 0; d < head_dim; ++d) out[d] += weight * partial[d];
    }
    for (int d = 0; d < head_dim; ++d) out[d] /= sum;
  }
}

}  // namespace

void Attention(int layer, absl::Span<const AttentionItem> batch,
               const AttentionOptions& options, ThreadPool& threads) {
  thread_local Workspace workspace;
  LayerAttention(layer, batch, options, threads, workspace).Run();
}

std::string AttentionKernels(const KvCache& cache,
                             AttentionArithmetic arithmetic) {
  std::set<std::string> names;
  for (int i = 0; i < cache.shape().num_layers; ++i) {
    for (const auto* streams : {&cache.layer(i).keys, &cache.layer(i).values}) {
      for (const KvStream& stream : *streams) {
        const std::vector<const BlockCodec*> codecs = stream.codecs();
        if (codecs.empty()) names.insert(NameOf(stream.full_precision()));
        for (const BlockCodec* codec : codecs)
          names.insert(PackedKernelName(*codec, arithmetic));
      }
    }
  }
  return absl::StrJoin(names, " + ");
}

}  // namespace kvmix
