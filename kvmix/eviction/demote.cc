// MiKV (Yang et al., arXiv 2402.18096): tokens that another policy would drop
// are kept in fewer bits instead; the others stay in the plan's format. The
// authors' balancing of channels between queries and keys is not here.
#include <memory>
#include <utility>

#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"
#include "kvmix/eviction/demote.pb.h"
#include "kvmix/eviction/scored_eviction.h"
#include "kvmix/eviction/wrapped_eviction.h"
#include "quant/quantizer.h"

namespace kvmix {
namespace {

class Demote final : public WrappedEviction {
 public:
  Demote(std::unique_ptr<ScoredEviction> inner,
         std::unique_ptr<Quantizer> quantizer, int key_bits, int value_bits)
      : WrappedEviction(std::move(inner)),
        quantizer_(std::move(quantizer)),
        key_bits_(key_bits),
        value_bits_(value_bits) {}
  absl::StatusOr<QuantFormat> DemotionFormat(Side side,
                                             int head_dim) const override {
    absl::StatusOr<QuantFormat> format = quantizer_->FormatFor(
        side, side == Side::kKey ? key_bits_ : value_bits_, head_dim);
    return format.ok() ? format
                       : AddContext(format.status(), "eviction_policy demote");
  }

 private:
  const std::unique_ptr<Quantizer> quantizer_;
  const int key_bits_, value_bits_;
};

absl::StatusOr<int> Bits(int bits, const char* field) {
  if (bits == 0) return 2;
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(bits, 1, 8, field));
  return bits;
}

const bool kRegistered = Registry<EvictionPolicy>::Get().Add<DemoteOptions>(
    "demote", "fewer bits for tokens that another policy would drop (MiKV)",
    [](const DemoteOptions& options) -> Registry<EvictionPolicy>::Result {
      KVMIX_ASSIGN_OR_RETURN(const int key_bits,
                             Bits(options.key_bits(), "options.key_bits"));
      KVMIX_ASSIGN_OR_RETURN(const int value_bits,
                             Bits(options.value_bits(), "options.value_bits"));
      Component quantizer = options.quantizer();
      if (quantizer.name().empty()) quantizer.set_name("group_affine");
      KVMIX_ASSIGN_OR_RETURN(
          std::unique_ptr<Quantizer> made,
          Registry<Quantizer>::Get().Make(quantizer, "options.quantizer"));
      KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<ScoredEviction> inner,
                             MakeInnerPolicy(options.inner(), "h2o"));
      return std::make_unique<Demote>(std::move(inner), std::move(made),
                                      key_bits, value_bits);
    });

}  // namespace
}  // namespace kvmix
