// The allocation of KVmix (Li et al., arXiv 2506.08018): the most important 20
// % of layers get high bits, all others low bits. Keys and values are ranked
// apart, so a layer may be high in one and low in the other. Of equal scores
// the earlier layer comes first.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/allocation/plan_from_bits.h"
#include "kvmix/allocation/top_fraction.pb.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"

namespace kvmix {
namespace {

int HighCount(const TopFractionOptions& options, int num_layers) {
  const double fraction = options.high_fraction();
  if (options.count_rule() == TopFractionOptions::RELEASED)
    return static_cast<int>(fraction / 2 * num_layers) * 2;
  // 0.29 of 100 layers is 29, though the double product is a little less.
  constexpr double kRounding = 1e-9;
  return static_cast<int>(std::floor(fraction * num_layers + kRounding));
}

// is_high[layer] of the `count` highest scores.
std::vector<bool> Highest(const std::vector<double>& scores, int count) {
  std::vector<int> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return scores[a] > scores[b]; });
  std::vector<bool> is_high(scores.size());
  for (int i = 0; i < count; ++i) is_high[order[i]] = true;
  return is_high;
}

class TopFraction final : public BitAllocator {
 public:
  explicit TopFraction(const TopFractionOptions& options) : options_(options) {}

  bool NeedsProfile() const override { return true; }

  absl::StatusOr<CachePlan> Allocate(
      const ImportanceProfile& profile,
      const AllocationContext& context) const override {
    if (profile.layer_size() != context.num_layers) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the profile has ", profile.layer_size(), " layers but the model ",
          context.num_layers, "; profile this model"));
    }
    std::vector<double> key_scores, value_scores;
    for (int i = 0; i < context.num_layers; ++i) {
      const LayerImportance& layer = profile.layer(i);
      if (!std::isfinite(layer.key()) || !std::isfinite(layer.value())) {
        return absl::InvalidArgumentError(absl::StrCat(
            "the profile's scores of layer ", i, " are ", layer.key(), " and ",
            layer.value(), " but must be finite"));
      }
      key_scores.push_back(layer.key());
      value_scores.push_back(layer.value());
    }
    const int count = HighCount(options_, context.num_layers);
    const std::vector<bool> key_high = Highest(key_scores, count);
    const std::vector<bool> value_high = Highest(value_scores, count);
    std::vector<LayerBits> bits(context.num_layers);
    for (int i = 0; i < context.num_layers; ++i) {
      bits[i] = {
          .key = key_high[i] ? options_.keys().high() : options_.keys().low(),
          .value = value_high[i] ? options_.values().high()
                                 : options_.values().low()};
    }
    return PlanFromBits(bits, context);
  }

 private:
  const TopFractionOptions options_;  // defaults filled in
};

void SetDefaults(int high, int low, TopFractionOptions::Bits* bits) {
  if (bits->high() == 0) bits->set_high(high);
  if (bits->low() == 0) bits->set_low(low);
}

const bool kRegistered = Registry<BitAllocator>::Get().Add<TopFractionOptions>(
    "top_fraction", "high bits for the most important share of layers (KVmix)",
    [](TopFractionOptions options) -> Registry<BitAllocator>::Result {
      if (!options.has_high_fraction()) options.set_high_fraction(0.2);
      SetDefaults(3, 2, options.mutable_keys());
      SetDefaults(4, 2, options.mutable_values());
      KVMIX_RETURN_IF_ERROR(ValidateIsInRange(options.high_fraction(), 0.0, 1.0,
                                              "options.high_fraction"));
      if (!TopFractionOptions::CountRule_IsValid(options.count_rule())) {
        return absl::InvalidArgumentError(
            absl::StrCat("options.count_rule is ", options.count_rule(),
                         " but must be FLOOR (0) or RELEASED (1)"));
      }
      return std::make_unique<TopFraction>(options);
    });

}  // namespace
}  // namespace kvmix
