#include "kvmix/allocation/plan_from_bits.h"

#include "absl/strings/str_cat.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/cache_plan.h"

namespace kvmix {
namespace {

absl::Status AddFormats(const PartBits& bits, const AllocationContext& context,
                        std::vector<QuantFormat>& key,
                        std::vector<QuantFormat>& value) {
  KVMIX_ASSIGN_OR_RETURN(
      key.emplace_back(),
      context.quantizer->FormatFor(Side::kKey, bits.key, context.head_dim));
  KVMIX_ASSIGN_OR_RETURN(
      value.emplace_back(),
      context.quantizer->FormatFor(Side::kValue, bits.value, context.head_dim));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CachePlan> PlanFromBits(const std::vector<PartBits>& bits,
                                       const AllocationContext& context) {
  std::vector<QuantFormat> key, value;
  for (size_t p = 0; p < bits.size(); ++p) {
    KVMIX_RETURN_IF_ERROR(
        AddContext(AddFormats(bits[p], context, key, value),
                   absl::StrCat("layer ", p / context.parts_of_layer())));
  }
  return PlanFromFormats(key, value, context);
}

CachePlan PlanFromFormats(const std::vector<QuantFormat>& key,
                          const std::vector<QuantFormat>& value,
                          const AllocationContext& context) {
  const int parts = context.parts_of_layer();
  CachePlan plan;
  for (int p = 0; p < context.num_parts(); p += parts) {
    LayerPlan& layer = *plan.add_layer();
    SetFormats({key.begin() + p, key.begin() + p + parts}, Side::kKey, layer);
    SetFormats({value.begin() + p, value.begin() + p + parts}, Side::kValue,
               layer);
  }
  return plan;
}

}  // namespace kvmix
