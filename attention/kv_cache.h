// KvCache: the keys and values of one sequence, really packed.
//
// For every layer, KV head, and for K and V each:
//   [ sink tokens | packed blocks, oldest first | window ]
// sinks and window in full precision, as CachePlan::full_precision says.
// Shapes: L = layers, G = KV heads, D = head_dim, T = tokens of a chunk.
#pragma once

#include <cstdint>
#include <memory>
#include <memory_resource>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/memory_ledger.h"
#include "kvmix/cache_plan.pb.h"
#include "kvmix/eviction/eviction_policy.h"
#include "kvmix/key_rotation.h"
#include "kvmix/recency/recency_policy.h"

namespace kvmix {

struct CacheShape {
  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  // How the model turns keys by position; null: not known, and formats of keys
  // before RoPE are refused.
  std::shared_ptr<const KeyRotation> key_rotation = nullptr;
};

class KvCache {
 public:
  // Policies are shared by the caches of a batch and outlive them. Memory comes
  // from `memory` alone; null: from a CacheMemory of its own.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(
      const CacheShape& shape, const CachePlan& plan,
      std::shared_ptr<const RecencyPolicy> recency,
      std::shared_ptr<const EvictionPolicy> eviction,
      std::pmr::memory_resource* memory = nullptr);
  ~KvCache();

  const CacheShape& shape() const;
  // Tokens appended to `layer` so far, those that have left included; equal for
  // all layers between chunks.
  int64_t num_tokens(int layer) const;

  // False: the eviction policy drops or demotes tokens, so that those of a head
  // are not all of the text, and not in its order.
  bool keeps_all_tokens() const;

  // One chunk passes a layer in three calls: Append, attention over the layer
  // (attention.h), FinishChunk. keys, values: [T, G, D] float, keys after RoPE.
  // They enter the window rounded to full precision. A chunk of one token is a
  // decode step: with FlushOrder::kBeforeAttention, Append also quantizes.
  // FinishChunk does what Append did not, and before that asks the eviction
  // policy.
  absl::Status Append(int layer, int64_t num_tokens, const float* keys,
                      const float* values);
  absl::Status FinishChunk(int layer);
  // Between Attention and FinishChunk: shows the chunk's queries [T, H, D] to
  // an eviction policy that wants to see them; nothing else happens otherwise.
  // `scale` is that of attention.
  absl::Status Observe(int layer, const float* queries, int num_heads,
                       float scale);

  // Bytes by cause, K and V apart. ledger().total() equals what was allocated
  // from `memory`.
  MemoryLedger ledger() const;

  class Layer;  // the streams of one layer, for attention.cc; see
                // kv_cache_layer.h
  const Layer& layer(int index) const;

 private:
  struct State;
  explicit KvCache(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace kvmix
