#include "quant/quantizer.h"

#include "kvmix/base/registry.h"

namespace kvmix {

absl::StatusOr<std::unique_ptr<Quantizer>> QuantizerOf(
    const QuantFormat& format) {
  Component component;
  component.set_name(format.quantizer());
  return Registry<Quantizer>::Get().Make(component, "quantizer");
}

absl::StatusOr<std::unique_ptr<BlockCodec>> MakeBlockCodec(
    const QuantFormat& format, Side side, int head_dim) {
  KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<Quantizer> quantizer,
                         QuantizerOf(format));
  return quantizer->MakeCodec(format, side, head_dim);
}

}  // namespace kvmix
