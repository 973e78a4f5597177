// Bits by reverse water-filling, as RateQuant (arXiv 2605.06675): the losses of
// each layer's keys and values, over the formats offered, are fitted by curves
// a exp(-s b) with one decay s for keys and one for values (of fully quantized
// formats; b: effective bits); bits are filled so that all marginal losses are
// equal (water_level.h); then every item takes the dearest format within its
// bits, and what is left of the budget goes, step by step, where the curves say
// that a byte saves most.
#include <algorithm>
#include <memory>
#include <vector>

#include "kvmix/allocation/choice_allocator.h"
#include "kvmix/allocation/water_filling.pb.h"
#include "kvmix/allocation/water_level.h"
#include "kvmix/base/registry.h"

namespace kvmix {
namespace {

// Of an item.
double Elements(const AllocationContext& context) {
  return static_cast<double>(context.costs->elements()) /
         context.parts_of_layer();
}

// Effective bits, the window's share included.
double BitsOf(const Choice& choice, const AllocationContext& context) {
  return 8.0 * static_cast<double>(choice.bytes) / Elements(context);
}

// One for each item.
std::vector<DistortionCurve> CurvesOf(const ChoiceTable& table,
                                      const AllocationContext& context) {
  std::vector<DistortionCurve> curves(table.size());
  for (size_t side = 0; side < 2; ++side) {
    std::vector<std::vector<CurvePoint>> items;
    for (size_t i = side; i < table.size(); i += 2) {
      std::vector<CurvePoint>& points = items.emplace_back();
      for (const Choice& choice : table[i])
        points.push_back({BitsOf(choice, context), choice.loss});
    }
    const std::vector<DistortionCurve> fitted = FitCurves(items);
    for (size_t i = 0; i < fitted.size(); ++i) curves[2 * i + side] = fitted[i];
  }
  return curves;
}

// The dearest choice of each item within the bits that water-filling gives it.
std::vector<int> WithinWater(const ChoiceTable& table,
                             const std::vector<DistortionCurve>& curves,
                             const AllocationContext& context) {
  std::vector<int> chosen = CheapestChoices(table);
  std::vector<BitRange> ranges;
  for (size_t i = 0; i < table.size(); ++i) {
    BitRange& range = ranges.emplace_back();
    range.low = range.high = BitsOf(table[i][chosen[i]], context);
    for (const Choice& choice : table[i])
      range.high = std::max(range.high, BitsOf(choice, context));
  }
  const double sum =
      8.0 * static_cast<double>(context.budget_bytes) / Elements(context);
  const std::vector<double> bits = FillWater(curves, ranges, sum);
  for (size_t i = 0; i < table.size(); ++i) {
    for (size_t c = 0; c < table[i].size(); ++c) {
      if (BitsOf(table[i][c], context) <= bits[i] &&
          table[i][c].bytes > table[i][chosen[i]].bytes)
        chosen[i] = static_cast<int>(c);
    }
  }
  return chosen;
}

class WaterFilling final : public ChoiceAllocator {
 public:
  using ChoiceAllocator::ChoiceAllocator;

 protected:
  absl::StatusOr<std::vector<int>> Choose(
      const ChoiceTable& table,
      const AllocationContext& context) const override {
    const std::vector<DistortionCurve> curves = CurvesOf(table, context);
    std::vector<int> chosen = WithinWater(table, curves, context);
    ChoiceTable fitted = table;
    for (size_t i = 0; i < table.size(); ++i) {
      for (Choice& choice : fitted[i])
        choice.loss = curves[i].Loss(BitsOf(choice, context));
    }
    TakeBestSteps(fitted, context.budget_bytes, chosen);
    return chosen;
  }
};

const bool kRegistered = Registry<BitAllocator>::Get().Add<WaterFillingOptions>(
    "water_filling",
    "equal marginal loss under fitted distortion curves, within a budget",
    [](const WaterFillingOptions& options) -> Registry<BitAllocator>::Result {
      return std::make_unique<WaterFilling>(options.trust_scores());
    });

}  // namespace
}  // namespace kvmix
