// The residual window of KIVI (Liu et al., arXiv 2402.02750, algorithm 1), R
// tokens in full precision:
//   keys    the window fills up to R tokens, then all R are quantized at once;
//           a prompt of T tokens leaves its last T mod R.
//   values  the window holds the last R tokens, and the oldest leave one by
//           one. A value format that is written in groups of g > 1 tokens makes
//           them leave g at a time, when the window has reached R + g tokens.
// A decode step attends to its own token before anything is quantized.
#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"
#include "kvmix/recency/recency_policy.h"
#include "kvmix/recency/residual_window.pb.h"

namespace kvmix {
namespace {

class ResidualWindow final : public RecencyPolicy {
 public:
  ResidualWindow(int64_t tokens, int64_t sink_tokens)
      : tokens_(tokens), sink_tokens_(sink_tokens) {}

  FlushOrder flush_order() const override {
    return FlushOrder::kAfterAttention;
  }

  int64_t sink_tokens() const override { return sink_tokens_; }

  absl::Status Validate(const WindowState& stream) const override {
    if (stream.side == Side::kValue || tokens_ % stream.granularity == 0)
      return absl::OkStatus();
    const int64_t below = tokens_ - tokens_ % stream.granularity;
    const int64_t above = below + stream.granularity;
    return absl::InvalidArgumentError(absl::StrCat(
        "recency_policy.options.tokens is ", tokens_,
        " but must be a multiple of ", stream.granularity, ", the tokens that ",
        stream.bits, "-bit keys are quantized together; use ",
        below > 0 ? absl::StrCat(below, " or ", above) : absl::StrCat(above)));
  }

  int64_t TokensToQuantize(const WindowState& state) const override {
    if (state.side == Side::kKey)
      return state.window_tokens - state.window_tokens % tokens_;
    const int64_t excess = std::max<int64_t>(0, state.window_tokens - tokens_);
    return excess - excess % state.granularity;
  }

 private:
  const int64_t tokens_;
  const int64_t sink_tokens_;
};

const bool kRegistered =
    Registry<RecencyPolicy>::Get().Add<ResidualWindowOptions>(
        "residual_window", "the last R tokens stay in full precision (KIVI)",
        [](const ResidualWindowOptions& options)
            -> Registry<RecencyPolicy>::Result {
          const int64_t tokens = options.tokens() == 0 ? 64 : options.tokens();
          KVMIX_RETURN_IF_ERROR(ValidateIsPositive(tokens, "options.tokens"));
          KVMIX_RETURN_IF_ERROR(ValidateIsNonNegative(options.sink_tokens(),
                                                      "options.sink_tokens"));
          return std::make_unique<ResidualWindow>(tokens,
                                                  options.sink_tokens());
        });

}  // namespace
}  // namespace kvmix
