// The newest tokens stay in full precision, a fixed share of all in the cache:
// of p packed tokens and a window of n, floor(f * (p + n)). Unlike KVmix's
// pivotal context, which counts the window alone, it grows with the context. A
// decode step quantizes before it attends.
#include <algorithm>
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"
#include "kvmix/recency/fraction_of_context.pb.h"
#include "kvmix/recency/recency_policy.h"

namespace kvmix {
namespace {

class FractionOfContext final : public RecencyPolicy {
 public:
  FractionOfContext(double fraction, int group, int64_t sink_tokens)
      : fraction_(fraction), group_(group), sink_tokens_(sink_tokens) {}

  FlushOrder flush_order() const override {
    return FlushOrder::kBeforeAttention;
  }
  int64_t sink_tokens() const override { return sink_tokens_; }
  absl::Status Validate(const WindowState&) const override {
    return absl::OkStatus();
  }
  int64_t TokensToQuantize(const WindowState& state) const override {
    const int64_t group = state.granularity > 1 ? state.granularity : group_;
    const auto kept = static_cast<int64_t>(
        fraction_ *
        static_cast<double>(state.packed_tokens + state.window_tokens));
    const int64_t leaving = std::max<int64_t>(0, state.window_tokens - kept);
    return leaving - leaving % group;
  }

 private:
  const double fraction_;
  const int64_t group_;
  const int64_t sink_tokens_;
};

const bool kRegistered =
    Registry<RecencyPolicy>::Get().Add<FractionOfContextOptions>(
        "fraction_of_context",
        "a share of the whole context stays in full precision",
        [](const FractionOfContextOptions& options)
            -> Registry<RecencyPolicy>::Result {
          const double fraction =
              options.has_fraction() ? options.fraction() : 0.1;
          const int group = options.group() == 0 ? 32 : options.group();
          KVMIX_RETURN_IF_ERROR(
              ValidateIsInRange(fraction, 0.0, 1.0, "options.fraction"));
          KVMIX_RETURN_IF_ERROR(ValidateIsPositive(group, "options.group"));
          KVMIX_RETURN_IF_ERROR(ValidateIsNonNegative(options.sink_tokens(),
                                                      "options.sink_tokens"));
          return std::make_unique<FractionOfContext>(fraction, group,
                                                     options.sink_tokens());
        });

}  // namespace
}  // namespace kvmix
