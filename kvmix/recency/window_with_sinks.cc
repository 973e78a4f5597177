// The first tokens and a sliding window of the newest stay in full precision,
// for keys and values alike (SKVQ, Duanmu et al., arXiv 2405.06219; KVQuant
// keeps first tokens, too). A format that takes g tokens together makes them
// leave when the window holds g more. A decode step attends first.
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"
#include "kvmix/recency/recency_policy.h"
#include "kvmix/recency/sliding_window.h"
#include "kvmix/recency/window_with_sinks.pb.h"

namespace kvmix {
namespace {

class WindowWithSinks final : public RecencyPolicy {
 public:
  WindowWithSinks(int64_t tokens, int64_t sink_tokens)
      : tokens_(tokens), sink_tokens_(sink_tokens) {}

  FlushOrder flush_order() const override {
    return FlushOrder::kAfterAttention;
  }
  int64_t sink_tokens() const override { return sink_tokens_; }
  absl::Status Validate(const WindowState&) const override {
    return absl::OkStatus();
  }
  int64_t TokensToQuantize(const WindowState& state) const override {
    return TokensBeyondWindow(state, tokens_);
  }

 private:
  const int64_t tokens_, sink_tokens_;
};

const bool kRegistered =
    Registry<RecencyPolicy>::Get().Add<WindowWithSinksOptions>(
        "window_with_sinks",
        "the first tokens and a sliding window stay in full precision (SKVQ)",
        [](const WindowWithSinksOptions& options)
            -> Registry<RecencyPolicy>::Result {
          const int64_t tokens = options.tokens() == 0 ? 128 : options.tokens();
          const int64_t sinks =
              options.has_sink_tokens() ? options.sink_tokens() : 5;
          KVMIX_RETURN_IF_ERROR(ValidateIsPositive(tokens, "options.tokens"));
          KVMIX_RETURN_IF_ERROR(
              ValidateIsNonNegative(sinks, "options.sink_tokens"));
          return std::make_unique<WindowWithSinks>(tokens, sinks);
        });

}  // namespace
}  // namespace kvmix
