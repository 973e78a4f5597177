// Quantizer "turbo": TurboQuant (Zandieh et al., arXiv 2504.19874) without its
// 1-bit residual. A token of a KV head is rotated at random (rotation.h), after
// which its channels are nearly normal, so that one codebook, the best for
// normal numbers (normal_codebook.h), serves all; beside the codes only the
// token's norm is stored: bits + 16/D bits an element.
//   code  = nearest level to (R x)_d * sqrt(D) / |x|
//   scale = half(|x| / |levels of the codes|)
// With `trellis` the codes of a token's channels are those of a trellis
// (trellis_code.h).
// The scale gives x_hat the norm of x (norm correction, as in vLLM).
#include <cmath>
#include <memory>

#include "kvmix/base/half.h"
#include "kvmix/base/registry.h"
#include "quant/level_codec.h"
#include "quant/normal_code.h"
#include "quant/rotation.h"
#include "quant/turbo.pb.h"
#include "quant/wrapping_codec.h"

namespace kvmix {
namespace {

constexpr char kName[] = "turbo";

double Norm(const float* x, int n) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return std::sqrt(sum);
}

class NormCorrected final : public LevelScheme {
 public:
  NormCorrected(bool trellis, int bits)
      : code_(NormalCodeOfBits(trellis, bits)), bits_(bits) {}
  int bits() const override { return bits_; }
  uint32_t Encode(const float* x, int n, uint32_t* codes) const override {
    const double norm = Norm(x, n);
    const auto deviation = static_cast<float>(norm / std::sqrt(n));
    std::vector<float> levels(n);
    const float inverse = deviation == 0 ? 0 : 1 / deviation;
    for (int i = 0; i < n; ++i)
      levels[i] = std::isfinite(inverse) ? x[i] * inverse : x[i] / deviation;
    code_.Encode(levels.data(), n, codes);
    code_.Decode(codes, n, levels.data());
    return ToHalf(static_cast<float>(norm / Norm(levels.data(), n))).bits;
  }
  void Levels(const uint32_t* codes, int n, float* levels) const override {
    code_.Decode(codes, n, levels);
  }

 private:
  const NormalCode& code_;
  const int bits_;
};

std::unique_ptr<Quantizer> MakeLevels(const TurboOptions& options) {
  const auto scheme = [options](const QuantFormat& format) {
    return std::make_unique<NormCorrected>(options.trellis(), format.bits());
  };
  return MakeLevelQuantizer({.name = kName,
                             .min_bits = 1,
                             .max_bits = MaxNormalCodeBits(options.trellis()),
                             .scheme = scheme,
                             .complete = [options](QuantFormat& format) {
                               format.mutable_options()->PackFrom(options);
                             }});
}

class Turbo final : public Quantizer {
 public:
  explicit Turbo(const TurboOptions& options) : levels_(MakeLevels(options)) {}
  absl::StatusOr<QuantFormat> FormatFor(Side side, int bits,
                                        int head_dim) const override {
    return levels_->FormatFor(side, bits, head_dim);
  }
  absl::StatusOr<std::unique_ptr<BlockCodec>> MakeCodec(
      const QuantFormat& format, Side side, int head_dim) const override {
    KVMIX_RETURN_IF_ERROR(CheckScheme(format, kName));
    KVMIX_ASSIGN_OR_RETURN(const auto own, OptionsOf<TurboOptions>(format));
    KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<BlockCodec> levels,
                           MakeLevels(own)->MakeCodec(format, side, head_dim));
    return MakeRotatedCodec(std::move(levels), side, head_dim, own.seed());
  }

 private:
  const std::unique_ptr<Quantizer> levels_;
};

const bool kRegistered = Registry<Quantizer>::Get().Add<TurboOptions>(
    kName, "random rotation, one codebook for normal numbers, corrected norms",
    [](const TurboOptions& options) -> Registry<Quantizer>::Result {
      return std::make_unique<Turbo>(options);
    });

}  // namespace
}  // namespace kvmix
