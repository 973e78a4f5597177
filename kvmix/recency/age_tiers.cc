// Tokens are stored in fewer bits as they age: full precision, then one format
// after the other, at last that of the plan (asked for in vLLM's issue 49198;
// PM-KVQ, arXiv 2505.18610, shrinks bits progressively, too). A token that
// passes on is quantized anew from what the tier before holds of it. Layers
// whose plan is 16 bits have no tiers.
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"
#include "kvmix/recency/age_tiers.pb.h"
#include "kvmix/recency/recency_policy.h"
#include "kvmix/recency/sliding_window.h"

namespace kvmix {
namespace {

class AgeTiers final : public RecencyPolicy {
 public:
  AgeTiers(const AgeTiersOptions& options, std::unique_ptr<Quantizer> quantizer)
      : options_(options), quantizer_(std::move(quantizer)) {}

  FlushOrder flush_order() const override {
    return FlushOrder::kAfterAttention;
  }
  int64_t sink_tokens() const override { return options_.sink_tokens(); }
  absl::StatusOr<std::vector<AgeTier>> Tiers(Side side,
                                             int head_dim) const override {
    std::vector<AgeTier> tiers;
    const auto other =
        side == Side::kKey ? AgeTiersOptions::VALUES : AgeTiersOptions::KEYS;
    for (const AgeTiersOptions::Tier& tier : options_.tier()) {
      if (tier.sides() == other) continue;
      KVMIX_ASSIGN_OR_RETURN(
          QuantFormat format,
          quantizer_->FormatFor(side, tier.bits(), head_dim));
      tiers.push_back({std::move(format), tier.tokens()});
    }
    return tiers;
  }
  absl::Status Validate(const WindowState&) const override {
    return absl::OkStatus();
  }
  int64_t TokensToQuantize(const WindowState& state) const override {
    return TokensBeyondWindow(state, options_.tokens());
  }

 private:
  const AgeTiersOptions options_;
  const std::unique_ptr<Quantizer> quantizer_;
};

void AddTier(int bits, int64_t tokens, AgeTiersOptions& options) {
  AgeTiersOptions::Tier& tier = *options.add_tier();
  tier.set_bits(bits);
  tier.set_tokens(tokens);
}

const bool kRegistered = Registry<RecencyPolicy>::Get().Add<AgeTiersOptions>(
    "age_tiers", "fewer bits with age: full precision, 8, 4, then the plan's",
    [](AgeTiersOptions options) -> Registry<RecencyPolicy>::Result {
      if (!options.has_tokens()) options.set_tokens(64);
      if (options.tier().empty()) {
        AddTier(8, 128, options);
        AddTier(4, 512, options);
      }
      KVMIX_RETURN_IF_ERROR(
          ValidateIsNonNegative(options.tokens(), "options.tokens"));
      KVMIX_RETURN_IF_ERROR(
          ValidateIsNonNegative(options.sink_tokens(), "options.sink_tokens"));
      for (int i = 0; i < options.tier_size(); ++i) {
        KVMIX_RETURN_IF_ERROR(
            ValidateIsInRange(options.tier(i).bits(), 1, 8,
                              absl::StrCat("options.tier[", i, "].bits")));
        KVMIX_RETURN_IF_ERROR(ValidateIsNonNegative(
            options.tier(i).tokens(),
            absl::StrCat("options.tier[", i, "].tokens")));
      }
      if (options.quantizer().name().empty())
        options.mutable_quantizer()->set_name("group_affine");
      KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<Quantizer> quantizer,
                             Registry<Quantizer>::Get().Make(
                                 options.quantizer(), "options.quantizer"));
      return std::make_unique<AgeTiers>(options, std::move(quantizer));
    });

}  // namespace
}  // namespace kvmix
