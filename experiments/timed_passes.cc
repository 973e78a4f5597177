#include "experiments/timed_passes.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

// One pass over a batch, greedy.
absl::Status Pass(Transformer& model, absl::Span<const Chunk> batch,
                  std::vector<int32_t>& next) {
  const int64_t vocab_size = model.config().vocab_size;
  next.resize(batch.size());
  return model.Forward(
      batch, [&](int chunk, int64_t, int64_t num_rows, const float* logits) {
        const float* row = logits + (num_rows - 1) * vocab_size;
        next[chunk] =
            static_cast<int32_t>(std::max_element(row, row + vocab_size) - row);
        return absl::OkStatus();
      });
}

double SecondsSince(absl::Time start) {
  return absl::ToDoubleSeconds(absl::Now() - start);
}

}  // namespace

absl::StatusOr<double> TimePrefill(Transformer& model, const CacheBatch& caches,
                                   absl::Span<const int32_t> tokens,
                                   std::vector<int32_t>& next) {
  std::vector<Chunk> batch;
  for (const auto& cache : caches)
    batch.push_back({tokens, cache.get(), WantLogits::kLast});
  const absl::Time start = absl::Now();
  KVMIX_RETURN_IF_ERROR(Pass(model, batch, next));
  return SecondsSince(start);
}

absl::StatusOr<double> TimeDecode(Transformer& model, const CacheBatch& caches,
                                  int steps, std::vector<int32_t>& next) {
  const absl::Time start = absl::Now();
  for (int step = 0; step < steps; ++step) {
    const std::vector<int32_t> tokens = next;
    std::vector<Chunk> batch;
    for (size_t i = 0; i < caches.size(); ++i)
      batch.push_back({{&tokens[i], 1}, caches[i].get(), WantLogits::kLast});
    KVMIX_RETURN_IF_ERROR(Pass(model, batch, next));
  }
  return SecondsSince(start);
}

}  // namespace kvmix
