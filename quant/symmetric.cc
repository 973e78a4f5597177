// Quantizer "symmetric": signed integers times a scale, no zero point: half a
// bit less than "group_affine" with groups of 32.
//   scale = half(-m / 2^(b-1)), m the element of largest magnitude
//   x_hat = code * scale, code in [-2^(b-1), 2^(b-1) - 1]
// The scale carries the sign of m, so that m itself takes the code that has no
// opposite, and no code is wasted (as in llama.cpp's q4_0).
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "kvmix/base/half.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"
#include "quant/group_quantizer.h"
#include "quant/level_codec.h"
#include "quant/symmetric.pb.h"

namespace kvmix {
namespace {

constexpr int kDefaultGroup = 32;

// Two's complement.
std::vector<float> Integers(int bits) {
  const int half = 1 << (bits - 1);
  std::vector<float> values(2 * half);
  for (int code = 0; code < 2 * half; ++code)
    values[code] = static_cast<float>(code < half ? code : code - 2 * half);
  return values;
}

class Symmetric final : public TableScheme {
 public:
  explicit Symmetric(int bits)
      : TableScheme(LevelTable(Integers(bits))),
        lowest_(-static_cast<float>(1 << (bits - 1))) {}
  uint32_t Encode(const float* x, int n, uint32_t* codes) const override {
    const float max = MaxMagnitude(x, n);
    const bool negative =
        std::none_of(x, x + n, [max](float v) { return v == max; });
    const Half scale = ToHalf((negative ? -max : max) / lowest_);
    NearestCodes(x, n, ToFloat(scale), codes);
    return scale.bits;
  }

 private:
  const float lowest_;
};

QuantFormat::Axis AxisOr(QuantFormat::Axis axis, QuantFormat::Axis other) {
  return axis == QuantFormat::AXIS_UNSPECIFIED ? other : axis;
}

absl::Status ValidateSide(const SymmetricOptions::Side& side,
                          const char* name) {
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(side.group_size(), 0, kMaxGroupSize,
                                          absl::StrCat(name, ".group_size")));
  if (QuantFormat::Axis_IsValid(side.axis())) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, ".axis is ", static_cast<int>(side.axis()),
                   " but must be PER_CHANNEL or PER_TOKEN"));
}

int GroupOr32(int group_size) {
  return group_size == 0 ? kDefaultGroup : group_size;
}

const bool kRegistered = Registry<Quantizer>::Get().Add<SymmetricOptions>(
    "symmetric", "signed integers times a scale, no zero point, 2 to 8 bits",
    [](const SymmetricOptions& options) -> Registry<Quantizer>::Result {
      KVMIX_RETURN_IF_ERROR(ValidateSide(options.key(), "options.key"));
      KVMIX_RETURN_IF_ERROR(ValidateSide(options.value(), "options.value"));
      return MakeLevelQuantizer(
          {.name = "symmetric",
           .min_bits = 2,
           .max_bits = 8,
           .key_axis = AxisOr(options.key().axis(), QuantFormat::PER_CHANNEL),
           .value_axis = AxisOr(options.value().axis(), QuantFormat::PER_TOKEN),
           .key_group = GroupOr32(options.key().group_size()),
           .value_group = GroupOr32(options.value().group_size()),
           .scheme = [](const QuantFormat& format) {
             return std::make_unique<Symmetric>(format.bits());
           }});
    });

}  // namespace
}  // namespace kvmix
