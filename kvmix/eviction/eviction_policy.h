// EvictionPolicy: which tokens are dropped from the cache for good.
#pragma once

#include <cstdint>
#include <vector>

#include "kvmix/layer_trace.h"

namespace kvmix {

struct EvictionState {
  int layer = 0;
  int kv_head = 0;
  int64_t num_tokens = 0;  // in the cache now
};

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  // Signals of the running model that the policy ranks tokens by.
  virtual SignalSet RequiredSignals() const = 0;
  // Indices, ascending, of the tokens of one KV head to drop now. Keys and
  // values go together.
  virtual std::vector<int64_t> TokensToDrop(
      const EvictionState& state) const = 0;
};

}  // namespace kvmix
