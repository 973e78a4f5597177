// The allocation of KVmix (Li et al., arXiv 2506.08018): the most important 20
// % of layers (of KV heads, at head granularity) get high bits, all others low
// bits. Keys and values are ranked apart, so a layer may be high in one and low
// in the other. Of equal scores the earlier layer comes first.
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/allocation/part_ranking.h"
#include "kvmix/allocation/plan_from_bits.h"
#include "kvmix/allocation/top_fraction.pb.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"

namespace kvmix {
namespace {

int HighCount(const TopFractionOptions& options, int num_parts) {
  const double fraction = options.high_fraction();
  if (options.count_rule() == TopFractionOptions::RELEASED)
    return static_cast<int>(fraction / 2 * num_parts) * 2;
  return FloorOfShare(fraction, num_parts);
}

// is_high[part] of the first `count` layers in this order.
std::vector<bool> Highest(const std::vector<int>& order, int count) {
  std::vector<bool> is_high(order.size());
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
    KVMIX_ASSIGN_OR_RETURN(const PartRanking ranking,
                           RankParts(profile, context));
    const int count = HighCount(options_, context.num_parts());
    const std::vector<bool> key_high = Highest(ranking.key, count);
    const std::vector<bool> value_high = Highest(ranking.value, count);
    std::vector<PartBits> bits(context.num_parts());
    for (int p = 0; p < context.num_parts(); ++p) {
      bits[p] = {
          .key = key_high[p] ? options_.keys().high() : options_.keys().low(),
          .value = value_high[p] ? options_.values().high()
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
