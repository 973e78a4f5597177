// Choosing the next token from logits: greedily, or at random from the softmax,
// cut to the most likely ones.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvmix/base/random.h"

namespace kvmix {

struct SamplingOptions {
  // 0: always the most likely token. Otherwise logits are divided by it.
  // Default: 0.
  double temperature = 0;
  // Only the k most likely tokens; 0: all. Default: 0.
  int top_k = 0;
  // Of those, only the fewest whose probabilities sum to at least p ("nucleus",
  // Holtzman et al., arXiv 1904.09751). Default: 1, all.
  double top_p = 1;
  uint64_t seed = 0;
  // Sequences with different streams draw independently.
  uint64_t stream = 0;
};

class Sampler {
 public:
  // Errors: a temperature that is negative or not finite, a negative top_k, a
  // top_p outside (0, 1].
  static absl::StatusOr<Sampler> Create(const SamplingOptions& options);

  // Equal logits count as ordered by token. The same seed, stream and logits
  // give the same tokens. Errors: no logits, a logit that is NaN or +infinite.
  absl::StatusOr<int32_t> Next(absl::Span<const float> logits);

 private:
  explicit Sampler(const SamplingOptions& options)
      : options_(options), random_(options.seed, options.stream) {}

  SamplingOptions options_;
  CounterRandom random_;
};

}  // namespace kvmix
