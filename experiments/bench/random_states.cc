#include "experiments/bench/random_states.h"

#include <algorithm>

#include "kvmix/base/random.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

constexpr int64_t kChunk = 256;  // tokens
constexpr int64_t kRows = 2 * kChunk;
constexpr int64_t kOutlierStride = 16;
constexpr float kOutlier = 10;

}  // namespace

RandomStates::RandomStates(const CacheShape& shape, uint64_t seed)
    : row_size_(int64_t{shape.num_kv_heads} * shape.head_dim),
      keys_(kRows * row_size_),
      values_(kRows * row_size_) {
  CounterRandom random(seed, 0);
  for (float& x : keys_) x = static_cast<float>(random.Normal());
  for (size_t i = 0; i < keys_.size(); i += kOutlierStride)
    keys_[i] *= kOutlier;
  for (float& x : values_) x = static_cast<float>(random.Normal());
}

absl::Status RandomStates::Append(int64_t num_tokens, int sequence,
                                  KvCache& cache) const {
  for (int layer = 0; layer < cache.shape().num_layers; ++layer) {
    int64_t row = 31 * layer + 101 * sequence;
    for (int64_t done = 0; done < num_tokens;) {
      const int64_t count = std::min(kChunk, num_tokens - done);
      const int64_t first = row % (kRows - count + 1) * row_size_;
      KVMIX_RETURN_IF_ERROR(cache.Append(layer, count, keys_.data() + first,
                                         values_.data() + first));
      KVMIX_RETURN_IF_ERROR(cache.FinishChunk(layer));
      done += count;
      row += 67;
    }
  }
  return absl::OkStatus();
}

}  // namespace kvmix
