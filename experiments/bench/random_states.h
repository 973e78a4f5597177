// Keys and values that no model made, to fill a cache quickly: its size and
// the cost of reading it depend on how many tokens it holds, not on which.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "attention/kv_cache.h"

namespace kvmix {

// Standard normal numbers; in every 16th channel of a key ten times as large,
// since keys have outlier channels. A few hundred tokens' worth is drawn once
// and used again and again from varying places.
class RandomStates {
 public:
  RandomStates(const CacheShape& shape, uint64_t seed);

  // Appends `num_tokens` tokens to every layer and has them packed, as a
  // prefill in chunks would. `sequence` varies the numbers. Thread-safe for
  // different caches. Errors: those of the cache.
  absl::Status Append(int64_t num_tokens, int sequence, KvCache& cache) const;

 private:
  const int64_t row_size_;     // G D
  std::vector<float> keys_;    // [kRows, G, D]
  std::vector<float> values_;  // the same
};

}  // namespace kvmix
