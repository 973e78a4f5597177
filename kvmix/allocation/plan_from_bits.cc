#include "kvmix/allocation/plan_from_bits.h"

#include "absl/strings/str_cat.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

absl::Status SetFormats(const LayerBits& bits, const AllocationContext& context,
                        LayerPlan* plan) {
  KVMIX_ASSIGN_OR_RETURN(
      *plan->mutable_key(),
      context.quantizer->FormatFor(Side::kKey, bits.key, context.head_dim));
  KVMIX_ASSIGN_OR_RETURN(
      *plan->mutable_value(),
      context.quantizer->FormatFor(Side::kValue, bits.value, context.head_dim));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CachePlan> PlanFromBits(const std::vector<LayerBits>& layers,
                                       const AllocationContext& context) {
  CachePlan plan;
  for (size_t i = 0; i < layers.size(); ++i) {
    KVMIX_RETURN_IF_ERROR(
        AddContext(SetFormats(layers[i], context, plan.add_layer()),
                   absl::StrCat("layer ", i)));
  }
  return plan;
}

}  // namespace kvmix
