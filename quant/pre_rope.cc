// Quantizer "pre_rope": keys as they were before the rotary position embedding,
// by any other quantizer (KVQuant, Hooper et al., arXiv 2401.18079, section
// 3.2). RoPE mixes the two channels of a pair by the token's position, so that
// a channel of large numbers becomes two that swing; before it they are
// constant along tokens, which is what groups per channel live on.
//
// Its codec is the inner one's, bytes and all, and says pre_rope(): positions
// are known to those who store keys, not here. Values have no RoPE; for them
// its formats are the inner quantizer's.
#include <memory>

#include "kvmix/base/registry.h"
#include "quant/pre_rope.pb.h"
#include "quant/wrapping_codec.h"

namespace kvmix {
namespace {

constexpr char kName[] = "pre_rope";

class PreRopeCodec final : public WrappingCodec {
 public:
  using WrappingCodec::WrappingCodec;
  void Encode(const float* x, int64_t stride, int first, int count,
              uint8_t* block) const override {
    inner().Encode(x, stride, first, count, block);
  }
  void Decode(const uint8_t* block, int first, int count, float* x,
              int64_t stride) const override {
    inner().Decode(block, first, count, x, stride);
  }
  bool pre_rope() const override { return true; }
};

class PreRope final : public Quantizer {
 public:
  explicit PreRope(std::unique_ptr<Quantizer> inner)
      : inner_(std::move(inner)) {}

  absl::StatusOr<QuantFormat> FormatFor(Side side, int bits,
                                        int head_dim) const override {
    KVMIX_ASSIGN_OR_RETURN(const QuantFormat inner,
                           inner_->FormatFor(side, bits, head_dim));
    if (bits == 16 || side == Side::kValue) return inner;
    PreRopeFormat own;
    *own.mutable_inner() = inner;
    return WrapFormat(kName, inner, own);
  }

  absl::StatusOr<std::unique_ptr<BlockCodec>> MakeCodec(
      const QuantFormat& format, Side side, int head_dim) const override {
    if (side == Side::kValue && format.quantizer() != kName)
      return inner_->MakeCodec(format, side, head_dim);
    KVMIX_RETURN_IF_ERROR(CheckScheme(format, kName));
    if (side == Side::kValue)
      return absl::InvalidArgumentError(
          "a format of quantizer pre_rope is for keys, since values have no "
          "RoPE; give values the format in its options.inner");
    KVMIX_ASSIGN_OR_RETURN(const auto own, OptionsOf<PreRopeFormat>(format));
    KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<BlockCodec> inner,
                           MakeInnerCodec(format, own.inner(), side, head_dim));
    return std::make_unique<PreRopeCodec>(std::move(inner), side, head_dim);
  }

  absl::StatusOr<bool> WantsQueryEnergy(
      const QuantFormat& format) const override {
    KVMIX_ASSIGN_OR_RETURN(const auto own, OptionsOf<PreRopeFormat>(format));
    KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<Quantizer> inner,
                           QuantizerOf(own.inner()));
    return inner->WantsQueryEnergy(own.inner());
  }
  absl::StatusOr<QuantFormat> Calibrated(
      const QuantFormat& format,
      absl::Span<const float> query_energy) const override {
    KVMIX_ASSIGN_OR_RETURN(auto own, OptionsOf<PreRopeFormat>(format));
    KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<Quantizer> inner,
                           QuantizerOf(own.inner()));
    KVMIX_ASSIGN_OR_RETURN(*own.mutable_inner(),
                           inner->Calibrated(own.inner(), query_energy));
    return WrapFormat(kName, own.inner(), own);
  }

 private:
  const std::unique_ptr<Quantizer> inner_;
};

const bool kRegistered = Registry<Quantizer>::Get().Add<PreRopeOptions>(
    kName, "keys before RoPE, by any other quantizer (KVQuant)",
    [](const PreRopeOptions& options) -> Registry<Quantizer>::Result {
      KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<Quantizer> inner,
                             MakeInnerQuantizer(options.inner()));
      return std::make_unique<PreRope>(std::move(inner));
    });

}  // namespace
}  // namespace kvmix
