// What a KvCache does for its eviction policy: keeps the signals that the
// policy asks for, shows it a layer, and carries out what it says.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "attention/kv_cache.h"
#include "attention/kv_cache_layer.h"
#include "kvmix/eviction/eviction_policy.h"

namespace kvmix {

// One layer of a cache, and the policy.
struct EvictionContext {
  const EvictionPolicy& policy;
  const CacheShape& shape;
  int layer_index;
  int64_t multiple;  // of tokens that leave a head together
  bool demotes;
  KvCache::Layer& layer;
};

// Counts `num_tokens` that have just been appended.
void RecordAppended(const EvictionContext& context, int64_t num_tokens);

// The open chunk's queries, [T, H, D].
void RecordQueries(const EvictionContext& context, const float* queries,
                   int num_heads, float scale);

// Asks the policy and drops or demotes what it names. Errors: an answer that
// breaks the policy's contract.
absl::Status Evict(const EvictionContext& context);

}  // namespace kvmix
