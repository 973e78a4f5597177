// Layers (KV heads, at head granularity) ranked by score and cut into tiers,
// each with its bits: top_fraction with any number of steps, as KVTuner (arXiv
// 2502.04420) groups layers. Keys and values are ranked apart.
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/allocation/part_ranking.h"
#include "kvmix/allocation/plan_from_bits.h"
#include "kvmix/allocation/tiers.pb.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"

namespace kvmix {
namespace {

// tier[part] of parts in this order. Tier i ends where the fractions up to it
// add up to, rounded down.
std::vector<int> TierOfParts(const std::vector<int>& order,
                             const TiersOptions& options) {
  std::vector<int> tier(order.size(), options.tier_size() - 1);
  double sum = 0;
  int next = 0;
  for (int t = 0; t + 1 < options.tier_size(); ++t) {
    sum += options.tier(t).fraction();
    const int end = FloorOfShare(sum, static_cast<int>(order.size()));
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
    KVMIX_ASSIGN_OR_RETURN(const PartRanking ranking,
                           RankParts(profile, context));
    const std::vector<int> key_tier = TierOfParts(ranking.key, options_);
    const std::vector<int> value_tier = TierOfParts(ranking.value, options_);
    std::vector<PartBits> bits;
    for (int p = 0; p < context.num_parts(); ++p) {
      bits.push_back({.key = options_.tier(key_tier[p]).key_bits(),
                      .value = options_.tier(value_tier[p]).value_bits()});
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
