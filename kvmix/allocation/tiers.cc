// Layers ranked by score and cut into tiers, each with its bits: top_fraction
// with any number of steps, as KVTuner (arXiv 2502.04420) groups layers. Keys
// and values are ranked apart. Of equal scores the earlier layer comes first.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/allocation/plan_from_bits.h"
#include "kvmix/allocation/tiers.pb.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"

namespace kvmix {
namespace {

// tier[layer] of the layers with these scores. Tier i ends where the fractions
// up to it add up to, rounded down.
std::vector<int> TierOfLayers(const std::vector<double>& scores,
                              const TiersOptions& options) {
  const int num_layers = static_cast<int>(scores.size());
  std::vector<int> order(num_layers);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return scores[a] > scores[b]; });
  std::vector<int> tier(num_layers, options.tier_size() - 1);
  double sum = 0;
  int next = 0;
  for (int t = 0; t + 1 < options.tier_size(); ++t) {
    sum += options.tier(t).fraction();
    // A sum of fractions may be a little less than what it stands for.
    constexpr double kRounding = 1e-9;
    const int end = static_cast<int>(std::floor(sum * num_layers + kRounding));
    for (; next < end; ++next) tier[order[next]] = t;
  }
  return tier;
}

class Tiers final : public BitAllocator {
 public:
  explicit Tiers(const TiersOptions& options) : options_(options) {}

  bool NeedsProfile() const override { return true; }

  absl::StatusOr<CachePlan> Allocate(
      const ImportanceProfile& profile,
      const AllocationContext& context) const override {
    if (profile.layer_size() != context.num_layers) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the profile has ", profile.layer_size(), " layers but the model ",
          context.num_layers, "; profile this model"));
    }
    std::vector<double> keys, values;
    for (int i = 0; i < context.num_layers; ++i) {
      const LayerImportance& layer = profile.layer(i);
      if (!std::isfinite(layer.key()) || !std::isfinite(layer.value())) {
        return absl::InvalidArgumentError(absl::StrCat(
            "the profile's scores of layer ", i, " are ", layer.key(), " and ",
            layer.value(), " but must be finite"));
      }
      keys.push_back(layer.key());
      values.push_back(layer.value());
    }
    const std::vector<int> key_tier = TierOfLayers(keys, options_);
    const std::vector<int> value_tier = TierOfLayers(values, options_);
    std::vector<LayerBits> bits;
    for (int i = 0; i < context.num_layers; ++i) {
      bits.push_back({.key = options_.tier(key_tier[i]).key_bits(),
                      .value = options_.tier(value_tier[i]).value_bits()});
    }
    return PlanFromBits(bits, context);
  }

 private:
  const TiersOptions options_;  // defaults filled in
};

void AddTier(double fraction, int bits, TiersOptions& options) {
  TiersOptions::Tier& tier = *options.add_tier();
  tier.set_fraction(fraction);
  tier.set_key_bits(bits);
  tier.set_value_bits(bits);
}

absl::Status Validate(const TiersOptions& options) {
  double sum = 0;
  for (int t = 0; t < options.tier_size(); ++t) {
    const TiersOptions::Tier& tier = options.tier(t);
    const std::string field = absl::StrCat("options.tier[", t, "]");
    KVMIX_RETURN_IF_ERROR(
        ValidateIsInRange(tier.fraction(), 0.0, 1.0, field + ".fraction"));
    KVMIX_RETURN_IF_ERROR(
        ValidateIsPositive(tier.key_bits(), field + ".key_bits"));
    KVMIX_RETURN_IF_ERROR(
        ValidateIsPositive(tier.value_bits(), field + ".value_bits"));
    if (t + 1 < options.tier_size()) sum += tier.fraction();
  }
  return ValidateIsInRange(sum, 0.0, 1.0 + 1e-9,
                           "the sum of options.tier fractions");
}

const bool kRegistered = Registry<BitAllocator>::Get().Add<TiersOptions>(
    "tiers", "layers ranked by score, in tiers with their own bits",
    [](TiersOptions options) -> Registry<BitAllocator>::Result {
      if (options.tier().empty()) {
        AddTier(0.1, 8, options);
        AddTier(0.2, 4, options);
        AddTier(0, 2, options);
      }
      KVMIX_RETURN_IF_ERROR(Validate(options));
      return std::make_unique<Tiers>(options);
    });

}  // namespace
}  // namespace kvmix
