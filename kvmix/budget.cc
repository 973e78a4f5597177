#include "kvmix/budget.h"

#include <cmath>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"
#include "kvmix/cache_plan.h"

namespace kvmix {
namespace {

double BitsOf(CachePlan::FullPrecision type) {
  return type == CachePlan::FLOAT ? 32 : 16;
}

absl::StatusOr<double> EffectiveBits(const QuantFormat& format,
                                     CachePlan::FullPrecision full_precision,
                                     Side side, int head_dim) {
  if (format.bits() == 0)
    return absl::InvalidArgumentError("the plan has no format");
  if (format.bits() == 16) return BitsOf(full_precision);
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<BlockCodec> codec,
                         MakeBlockCodec(format, side, head_dim));
  return codec->effective_bits(head_dim);
}

// The mean over KV heads.
absl::Status AddLayer(const LayerPlan& layer,
                      CachePlan::FullPrecision full_precision, Side side,
                      int head_dim, AverageBits& sum) {
  const std::vector<const QuantFormat*> formats = FormatsOf(layer, side);
  const auto count = static_cast<double>(formats.size());
  for (const QuantFormat* format : formats) {
    KVMIX_ASSIGN_OR_RETURN(
        const double bits,
        EffectiveBits(*format, full_precision, side, head_dim));
    sum.nominal +=
        (format->bits() == 16 ? BitsOf(full_precision) : format->bits()) /
        count;
    sum.effective += bits / count;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PlanBits> BitsOfPlan(const CachePlan& plan, int head_dim) {
  if (plan.layer().empty())
    return absl::InvalidArgumentError("the plan has no layers");
  PlanBits bits;
  for (int i = 0; i < plan.layer_size(); ++i) {
    for (const Side side : {Side::kKey, Side::kValue}) {
      KVMIX_RETURN_IF_ERROR(AddContext(
          AddLayer(plan.layer(i), plan.full_precision(), side, head_dim,
                   side == Side::kKey ? bits.key : bits.value),
          absl::StrCat("layer ", i, " ", SideName(side))));
    }
  }
  for (AverageBits* side : {&bits.key, &bits.value}) {
    side->nominal /= plan.layer_size();
    side->effective /= plan.layer_size();
  }
  return bits;
}

absl::StatusOr<int64_t> LayerCosts::LayerBytes(
    Side side, const QuantFormat& format) const {
  int64_t sum = 0;
  for (int head = 0; head < num_kv_heads(); ++head) {
    KVMIX_ASSIGN_OR_RETURN(const int64_t bytes, HeadBytes(side, head, format));
    sum += bytes;
  }
  return sum;
}

absl::StatusOr<int64_t> BlockCosts::HeadBytes(Side side, int,
                                              const QuantFormat& format) const {
  KVMIX_ASSIGN_OR_RETURN(
      const double bits,
      EffectiveBits(format, full_precision_, side, head_dim_));
  return static_cast<int64_t>(
      std::ceil(bits * static_cast<double>(int64_t{head_dim_} << 20) / 8));
}

absl::StatusOr<int64_t> PlanBytes(const CachePlan& plan,
                                  const LayerCosts& costs) {
  KVMIX_RETURN_IF_ERROR(CheckHeads(plan, costs.num_kv_heads()));
  int64_t sum = 0;
  for (int i = 0; i < plan.layer_size(); ++i) {
    for (const Side side : {Side::kKey, Side::kValue}) {
      for (int head = 0; head < costs.num_kv_heads(); ++head) {
        const absl::StatusOr<int64_t> bytes = costs.HeadBytes(
            side, head, FormatOfHead(plan.layer(i), side, head));
        if (!bytes.ok()) {
          return AddContext(bytes.status(),
                            absl::StrCat("layer ", i, " ", SideName(side)));
        }
        sum += *bytes;
      }
    }
  }
  return sum;
}

absl::StatusOr<int64_t> BudgetBytes(const Budget& budget, int num_layers,
                                    const LayerCosts& costs) {
  KVMIX_RETURN_IF_ERROR(
      ValidateIsNonNegative(budget.effective_bits(), "budget.effective_bits"));
  KVMIX_RETURN_IF_ERROR(ValidateIsNonNegative(budget.bytes(), "budget.bytes"));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsNonNegative(budget.context_length(), "budget.context_length"));
  const bool in_bits = budget.effective_bits() > 0;
  if (in_bits == (budget.bytes() > 0)) {
    return absl::InvalidArgumentError(
        "budget must have exactly one of effective_bits and bytes, as budget { "
        "effective_bits: 3 }");
  }
  if (in_bits) {
    return static_cast<int64_t>(
        std::floor(budget.effective_bits() *
                   static_cast<double>(2 * num_layers * costs.elements()) / 8));
  }
  if (budget.context_length() == 0) {
    return absl::InvalidArgumentError(
        "budget.bytes needs budget.context_length, the tokens that the cache "
        "holds then; or give budget.effective_bits");
  }
  return budget.bytes();
}

absl::Status CheckBudget(const CachePlan& plan, int64_t budget_bytes,
                         const LayerCosts& costs) {
  KVMIX_ASSIGN_OR_RETURN(const int64_t bytes, PlanBytes(plan, costs));
  if (bytes <= budget_bytes) return absl::OkStatus();
  const double elements =
      2.0 * plan.layer_size() * static_cast<double>(costs.elements());
  return absl::InvalidArgumentError(absl::StrFormat(
      "the plan takes %d bytes (%.4f bits for each element) but the budget is "
      "%d (%.4f); raise the budget, offer cheaper formats, or use an allocator "
      "that keeps to a budget, as \"knapsack\"",
      bytes, 8.0 * static_cast<double>(bytes) / elements, budget_bytes,
      8.0 * static_cast<double>(budget_bytes) / elements));
}

}  // namespace kvmix
