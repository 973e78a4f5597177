// Quantizer "mxfp4": 4-bit floats E2M1 in blocks of 32 channels of a token with
// one scale, a power of two in 8 bits (OCP Microscaling Formats 1.0): 4.25 bits
// an element. The scale is 2^(floor(log2(max |x|)) - 2), 2 being the exponent
// of the largest E2M1; what exceeds 6 * scale saturates.
#include <algorithm>
#include <cmath>
#include <memory>

#include "kvmix/base/registry.h"
#include "quant/float_formats.h"
#include "quant/level_codec.h"

namespace kvmix {
namespace {

constexpr int kBlock = 32;
constexpr int kMaxExponent = 2;  // of E2M1
constexpr int kBias = 127;       // of E8M0

class Mxfp4 final : public TableScheme {
 public:
  Mxfp4() : TableScheme(LevelTable(E2M1Values())) {}
  int scale_bytes() const override { return 1; }
  uint32_t Encode(const float* x, int n, uint32_t* codes) const override {
    const float max = MaxMagnitude(x, n);
    const int exponent = max == 0 ? -kBias : std::ilogb(max) - kMaxExponent;
    const uint32_t stored =
        static_cast<uint32_t>(std::clamp(exponent + kBias, 0, 254));
    NearestCodes(x, n, E8M0Value(stored), codes);
    return stored;
  }
  float Scale(uint32_t stored) const override { return E8M0Value(stored); }
};

const bool kRegistered = Registry<Quantizer>::Get().Add(
    "mxfp4", "4-bit floats in blocks of 32 with a power of two (OCP MX)",
    [](const google::protobuf::Empty&) -> Registry<Quantizer>::Result {
      return MakeLevelQuantizer({.name = "mxfp4",
                                 .min_bits = 4,
                                 .max_bits = 4,
                                 .key_group = kBlock,
                                 .value_group = kBlock,
                                 .fixed_group = true,
                                 .scheme = [](const QuantFormat&) {
                                   return std::make_unique<Mxfp4>();
                                 }});
    });

}  // namespace
}  // namespace kvmix
