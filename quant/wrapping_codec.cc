#include "quant/wrapping_codec.h"

#include "kvmix/base/registry.h"

namespace kvmix {

absl::StatusOr<std::unique_ptr<BlockCodec>> MakeInnerCodec(
    const QuantFormat& outer, const QuantFormat& inner, Side side,
    int head_dim) {
  if (inner.bits() != outer.bits() || inner.bits() == 16)
    return absl::InvalidArgumentError(
        absl::StrCat("bits is ", outer.bits(), " but options.inner.bits is ",
                     inner.bits(), "; they must be equal, and less than 16"));
  absl::StatusOr<std::unique_ptr<BlockCodec>> codec =
      MakeBlockCodec(inner, side, head_dim);
  if (!codec.ok()) return AddContext(codec.status(), "options.inner");
  if ((*codec)->pre_rope())
    return absl::InvalidArgumentError(absl::StrCat(
        "options.inner of quantizer \"", outer.quantizer(),
        "\" is \"pre_rope\", which must stand around all others; write "
        "\"pre_rope\" with an inner \"",
        outer.quantizer(), "\""));
  return codec;
}

absl::StatusOr<std::unique_ptr<Quantizer>> MakeInnerQuantizer(
    const Component& component) {
  Component inner = component;
  if (inner.name().empty()) inner.set_name("group_affine");
  return Registry<Quantizer>::Get().Make(inner, "options.inner");
}

}  // namespace kvmix
