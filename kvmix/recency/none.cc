// No window: tokens are quantized as soon as the format can take them, so that
// only an incomplete group of a per-channel format stays in full precision.
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/recency/recency_policy.h"

namespace kvmix {
namespace {

class NoWindow final : public RecencyPolicy {
 public:
  FlushOrder flush_order() const override {
    return FlushOrder::kBeforeAttention;
  }
  absl::Status Validate(const WindowState&) const override {
    return absl::OkStatus();
  }
  int64_t TokensToQuantize(const WindowState& state) const override {
    return state.window_tokens - state.window_tokens % state.granularity;
  }
};

const bool kRegistered = Registry<RecencyPolicy>::Get().Add(
    "none", "no window: tokens are quantized as soon as a group is complete",
    [](const google::protobuf::Empty&) -> Registry<RecencyPolicy>::Result {
      return std::make_unique<NoWindow>();
    });

}  // namespace
}  // namespace kvmix
