// Quantizer "hadamard": a random rotation along the channels of a KV head
// (rotation.h) before any other quantizer (QuaRot, arXiv 2404.00456; RotateKV,
// arXiv 2501.16383). Reading rotates back, so that attention needs no rotated
// queries.
#include <memory>

#include "kvmix/base/registry.h"
#include "quant/hadamard.pb.h"
#include "quant/rotation.h"
#include "quant/wrapping_codec.h"

namespace kvmix {
namespace {

constexpr char kName[] = "hadamard";

class HadamardQuantizer final : public Quantizer {
 public:
  HadamardQuantizer(std::unique_ptr<Quantizer> inner, uint64_t seed)
      : inner_(std::move(inner)), seed_(seed) {}

  absl::StatusOr<QuantFormat> FormatFor(Side side, int bits,
                                        int head_dim) const override {
    KVMIX_ASSIGN_OR_RETURN(const QuantFormat inner,
                           inner_->FormatFor(side, bits, head_dim));
    if (bits == 16) return inner;
    HadamardFormat own;
    *own.mutable_inner() = inner;
    own.set_seed(seed_);
    return WrapFormat(kName, inner, own);
  }

  absl::StatusOr<std::unique_ptr<BlockCodec>> MakeCodec(
      const QuantFormat& format, Side side, int head_dim) const override {
    KVMIX_RETURN_IF_ERROR(CheckScheme(format, kName));
    KVMIX_ASSIGN_OR_RETURN(const auto own, OptionsOf<HadamardFormat>(format));
    KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<BlockCodec> inner,
                           MakeInnerCodec(format, own.inner(), side, head_dim));
    return MakeRotatedCodec(std::move(inner), side, head_dim, own.seed());
  }

 private:
  const std::unique_ptr<Quantizer> inner_;
  const uint64_t seed_;
};

const bool kRegistered = Registry<Quantizer>::Get().Add<HadamardOptions>(
    kName, "a random rotation along channels, then any other quantizer",
    [](const HadamardOptions& options) -> Registry<Quantizer>::Result {
      KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<Quantizer> inner,
                             MakeInnerQuantizer(options.inner()));
      return std::make_unique<HadamardQuantizer>(std::move(inner),
                                                 options.seed());
    });

}  // namespace
}  // namespace kvmix
