// A method that is ready to run: what a cache is made of.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "attention/kv_cache.h"
#include "kvmix/cache_plan.pb.h"
#include "kvmix/eviction/eviction_policy.h"
#include "kvmix/recency/recency_policy.h"
#include "models/transformer.h"

namespace kvmix {

struct RunnableMethod {
  std::string name;
  CachePlan plan;
  std::shared_ptr<const RecencyPolicy> recency;
  std::shared_ptr<const EvictionPolicy> eviction;
};

// Errors name the method.
absl::StatusOr<std::unique_ptr<KvCache>> MakeCache(
    const Transformer& model, const RunnableMethod& method);

}  // namespace kvmix
