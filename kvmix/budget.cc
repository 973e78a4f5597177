#include "kvmix/budget.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "kvmix/base/status_macros.h"
#include "quant/quantizer.h"

namespace kvmix {
namespace {

absl::Status AddFormat(const QuantFormat& format, Side side, int head_dim,
                       AverageBits& sum) {
  if (format.bits() == 0)
    return absl::InvalidArgumentError("the plan has no format");
  sum.nominal += format.bits();
  if (format.bits() == 16) {
    sum.effective += 16;
    return absl::OkStatus();
  }
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<BlockCodec> codec,
                         MakeBlockCodec(format, side, head_dim));
  sum.effective += codec->effective_bits(head_dim);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PlanBits> BitsOfPlan(const CachePlan& plan, int head_dim) {
  if (plan.layer().empty())
    return absl::InvalidArgumentError("the plan has no layers");
  PlanBits bits;
  for (int i = 0; i < plan.layer_size(); ++i) {
    KVMIX_RETURN_IF_ERROR(AddContext(
        AddFormat(plan.layer(i).key(), Side::kKey, head_dim, bits.key),
        absl::StrCat("layer ", i, " keys")));
    KVMIX_RETURN_IF_ERROR(AddContext(
        AddFormat(plan.layer(i).value(), Side::kValue, head_dim, bits.value),
        absl::StrCat("layer ", i, " values")));
  }
  for (AverageBits* side : {&bits.key, &bits.value}) {
    side->nominal /= plan.layer_size();
    side->effective /= plan.layer_size();
  }
  return bits;
}

}  // namespace kvmix
