#include "quant/scaled_floats.h"

#include <algorithm>

#include "kvmix/base/half.h"

namespace kvmix {
namespace {

constexpr float kMaxHalf = 65504;

class ScaledFloats final : public TableScheme {
 public:
  explicit ScaledFloats(std::vector<float> values)
      : TableScheme(LevelTable(std::move(values))) {}
  uint32_t Encode(const float* x, int n, uint32_t* codes) const override {
    const Half scale =
        ToHalf(std::min(kMaxHalf, MaxMagnitude(x, n) / table().max()));
    NearestCodes(x, n, ToFloat(scale), codes);
    return scale.bits;
  }
};

}  // namespace

std::unique_ptr<LevelScheme> MakeScaledFloats(std::vector<float> values) {
  return std::make_unique<ScaledFloats>(std::move(values));
}

std::unique_ptr<Quantizer> MakeFp8Quantizer(const char* name,
                                            std::vector<float> (*values)()) {
  return MakeLevelQuantizer({.name = name,
                             .min_bits = 8,
                             .max_bits = 8,
                             .scheme = [values](const QuantFormat&) {
                               return MakeScaledFloats(values());
                             }});
}

}  // namespace kvmix
