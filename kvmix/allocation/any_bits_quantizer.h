// AnyBitsQuantizer: offers 1 to 8 bits and 16, and packs nothing; for tests of
// allocators.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "quant/quantizer.h"

namespace kvmix {

class AnyBitsQuantizer final : public Quantizer {
 public:
  absl::StatusOr<QuantFormat> FormatFor(Side side, int bits,
                                        int) const override {
    if (bits != 16 && (bits < 1 || bits > 8)) {
      return absl::InvalidArgumentError(
          absl::StrCat(SideName(side), ": bits is ", bits));
    }
    QuantFormat format;
    format.set_bits(bits);
    if (bits != 16) format.set_quantizer("any_bits");
    return format;
  }

  absl::StatusOr<std::unique_ptr<BlockCodec>> MakeCodec(const QuantFormat&,
                                                        Side,
                                                        int) const override {
    return absl::UnimplementedError("any_bits packs nothing");
  }
};

}  // namespace kvmix
