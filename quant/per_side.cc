// Quantizer "per_side": one quantizer for keys, another for values. Its formats
// are theirs.
#include <memory>

#include "kvmix/base/registry.h"
#include "quant/per_side.pb.h"
#include "quant/wrapping_codec.h"

namespace kvmix {
namespace {

class PerSide final : public Quantizer {
 public:
  PerSide(std::unique_ptr<Quantizer> key, std::unique_ptr<Quantizer> value)
      : key_(std::move(key)), value_(std::move(value)) {}

  absl::StatusOr<QuantFormat> FormatFor(Side side, int bits,
                                        int head_dim) const override {
    return Of(side).FormatFor(side, bits, head_dim);
  }
  absl::StatusOr<std::unique_ptr<BlockCodec>> MakeCodec(
      const QuantFormat& format, Side side, int head_dim) const override {
    return Of(side).MakeCodec(format, side, head_dim);
  }

 private:
  const Quantizer& Of(Side side) const {
    return side == Side::kKey ? *key_ : *value_;
  }
  const std::unique_ptr<Quantizer> key_, value_;
};

const bool kRegistered = Registry<Quantizer>::Get().Add<PerSideOptions>(
    "per_side", "one quantizer for keys, another for values",
    [](const PerSideOptions& options) -> Registry<Quantizer>::Result {
      absl::StatusOr<std::unique_ptr<Quantizer>> key =
          MakeInnerQuantizer(options.key());
      if (!key.ok()) return AddContext(key.status(), "options.key");
      absl::StatusOr<std::unique_ptr<Quantizer>> value =
          MakeInnerQuantizer(options.value());
      if (!value.ok()) return AddContext(value.status(), "options.value");
      return std::make_unique<PerSide>(*std::move(key), *std::move(value));
    });

}  // namespace
}  // namespace kvmix
