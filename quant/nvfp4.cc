// Quantizer "nvfp4": 4-bit floats E2M1 in blocks of 16 channels of a token with
// one scale in E4M3, times a global one (NVIDIA's NVFP4): 4.5 bits an element.
//   scale = E4M3(max |x| / 6 / global_scale)
// The global scale stands in the format, since a cache that grows cannot know
// its largest number.
#include <algorithm>
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"
#include "quant/float_formats.h"
#include "quant/level_codec.h"
#include "quant/nvfp4.pb.h"
#include "quant/wrapping_codec.h"

namespace kvmix {
namespace {

constexpr int kBlock = 16;

class Nvfp4 final : public TableScheme {
 public:
  explicit Nvfp4(float global_scale)
      : TableScheme(LevelTable(E2M1Values())),
        scales_(E4M3Values()),
        global_scale_(global_scale) {}
  int scale_bytes() const override { return 1; }
  uint32_t Encode(const float* x, int n, uint32_t* codes) const override {
    const uint32_t stored =
        scales_.Nearest(MaxMagnitude(x, n) / table().max() / global_scale_);
    NearestCodes(x, n, Scale(stored), codes);
    return stored;
  }
  float Scale(uint32_t stored) const override {
    return scales_.value(stored) * global_scale_;
  }

 private:
  const LevelTable scales_;
  const float global_scale_;
};

absl::Status Validate(const Nvfp4Options& options) {
  return ValidateIsPositive(options.global_scale(), "options.global_scale");
}

const bool kRegistered = Registry<Quantizer>::Get().Add<Nvfp4Options>(
    "nvfp4", "4-bit floats in blocks of 16 with an 8-bit scale (NVIDIA)",
    [](Nvfp4Options options) -> Registry<Quantizer>::Result {
      if (options.global_scale() == 0) options.set_global_scale(1);
      KVMIX_RETURN_IF_ERROR(Validate(options));
      return MakeLevelQuantizer(
          {.name = "nvfp4",
           .min_bits = 4,
           .max_bits = 4,
           .key_group = kBlock,
           .value_group = kBlock,
           .fixed_group = true,
           .scheme = [](const QuantFormat& format)
               -> absl::StatusOr<std::unique_ptr<LevelScheme>> {
             KVMIX_ASSIGN_OR_RETURN(const auto own,
                                    OptionsOf<Nvfp4Options>(format));
             KVMIX_RETURN_IF_ERROR(Validate(own));
             return std::make_unique<Nvfp4>(own.global_scale());
           },
           .complete =
               [options](QuantFormat& format) {
                 format.mutable_options()->PackFrom(options);
               }});
    });

}  // namespace
}  // namespace kvmix
