#include "models/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"

namespace kvmix {

absl::StatusOr<Sampler> Sampler::Create(const SamplingOptions& options) {
  KVMIX_RETURN_IF_ERROR(
      ValidateIsNonNegative(options.temperature, "temperature"));
  KVMIX_RETURN_IF_ERROR(ValidateIsNonNegative(options.top_k, "top_k"));
  KVMIX_RETURN_IF_ERROR(ValidateIsPositive(options.top_p, "top_p"));
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(options.top_p, 0.0, 1.0, "top_p"));
  return Sampler(options);
}

absl::StatusOr<int32_t> Sampler::Next(absl::Span<const float> logits) {
  if (logits.empty()) return absl::InvalidArgumentError("there are no logits");
  for (size_t i = 0; i < logits.size(); ++i) {
    // -infinity is a token that a mask has forbidden.
    if (!(logits[i] < std::numeric_limits<float>::infinity())) {
      return absl::InvalidArgumentError(
          absl::StrCat("the logit of token ", i, " is ", logits[i]));
    }
  }
  const auto more_likely = [&](int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  };
  std::vector<int32_t> tokens(logits.size());
  std::iota(tokens.begin(), tokens.end(), 0);
  if (options_.temperature == 0)
    return *std::min_element(tokens.begin(), tokens.end(), more_likely);

  size_t kept = tokens.size();
  if (options_.top_k > 0) {
    kept = std::min(kept, static_cast<size_t>(options_.top_k));
    std::nth_element(tokens.begin(), tokens.begin() + (kept - 1), tokens.end(),
                     more_likely);
  }
  std::sort(tokens.begin(), tokens.begin() + kept, more_likely);
  std::vector<double> cumulative(kept);  // not normalised
  double sum = 0;
  for (size_t i = 0; i < kept; ++i) {
    sum += std::exp((double{logits[tokens[i]]} - logits[tokens[0]]) /
                    options_.temperature);
    cumulative[i] = sum;
  }
  const auto first_at_least = [&](double mass) {
    return static_cast<size_t>(
        std::lower_bound(cumulative.begin(), cumulative.end(), mass) -
        cumulative.begin());
  };
  const size_t last = std::min(first_at_least(options_.top_p * sum), kept - 1);
  // In (0, mass], so that a token of probability 0 is never drawn.
  const double draw = (1 - random_.Uniform()) * cumulative[last];
  return tokens[first_at_least(draw)];
}

}  // namespace kvmix
