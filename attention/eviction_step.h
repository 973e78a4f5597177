// What an eviction policy says about one layer, checked: the same for caches on
// the CPU and on a device.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kvmix/eviction/eviction_policy.h"

namespace kvmix {

// Internal error: an answer that breaks the policy's contract.
absl::Status CheckDropped(const EvictionState& state,
                          const std::vector<TokenList>& dropped);

}  // namespace kvmix
