// The recent pivotal context of KVmix (Li et al., arXiv 2506.08018, section
// "Recent pivotal context selection"): of a window of n tokens, the new ones
// included, the newest floor(r * n) stay in full precision and of the rest the
// oldest whole groups of g tokens are quantized:
//   floor((n - floor(r * n)) / g) * g
// The window is counted anew after every append, so it shrinks geometrically to
// about one group; it is not a share of the context. r depends on the bits that
// tokens leave into. g is the format's group of tokens; a format that takes
// single tokens is given `group` at a time. A decode step quantizes before it
// attends.
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kvmix/base/check.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"
#include "kvmix/recency/pivotal_context.pb.h"
#include "kvmix/recency/recency_policy.h"

namespace kvmix {
namespace {

constexpr int kMaxBits = 8;

using RatioByBits = std::map<int, double>;

class PivotalContext final : public RecencyPolicy {
 public:
  PivotalContext(RatioByBits ratios, int group, int64_t sink_tokens)
      : ratios_(std::move(ratios)), group_(group), sink_tokens_(sink_tokens) {}

  FlushOrder flush_order() const override {
    return FlushOrder::kBeforeAttention;
  }

  int64_t sink_tokens() const override { return sink_tokens_; }

  absl::Status Validate(const WindowState& stream) const override {
    if (ratios_.count(stream.bits) > 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("recency_policy.options has no ratio for ", stream.bits,
                     "-bit ", SideName(stream.side), "; it has one for ",
                     absl::StrJoin(ratios_, ", ",
                                   [](std::string* out, const auto& entry) {
                                     absl::StrAppend(out, entry.first);
                                   }),
                     " bits; add ratio_by_bits { key: ", stream.bits,
                     " value: 0.2 } or set ratio"));
  }

  int64_t TokensToQuantize(const WindowState& state) const override {
    const auto ratio = ratios_.find(state.bits);
    KVMIX_CHECK(ratio != ratios_.end()) << "stream was not validated";
    const int64_t group = state.granularity > 1 ? state.granularity : group_;
    // The released code's int(r * n): one double product, truncated.
    const auto kept = static_cast<int64_t>(
        ratio->second * static_cast<double>(state.window_tokens));
    const int64_t leaving = state.window_tokens - kept;
    return leaving - leaving % group;
  }

 private:
  const RatioByBits ratios_;
  const int64_t group_;
  const int64_t sink_tokens_;
};

absl::StatusOr<RatioByBits> Ratios(const PivotalContextOptions& options) {
  if (options.has_ratio()) {
    if (!options.ratio_by_bits().empty()) {
      return absl::InvalidArgumentError(
          "options.ratio and options.ratio_by_bits are both set; leave one "
          "out");
    }
    KVMIX_RETURN_IF_ERROR(
        ValidateIsInRange(options.ratio(), 0.0, 1.0, "options.ratio"));
    RatioByBits ratios;
    for (int bits = 1; bits <= kMaxBits; ++bits) ratios[bits] = options.ratio();
    return ratios;
  }
  RatioByBits ratios;
  switch (options.ratios()) {
    case PivotalContextOptions::PAPER:
      ratios = {{2, 0.1}, {3, 0.2}, {4, 0.2}};
      break;
    case PivotalContextOptions::RELEASED:
      ratios = {{1, 0.1}, {2, 0.2}, {3, 0.2}, {4, 0.3}};
      break;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("options.ratios is ", options.ratios(),
                       " but must be PAPER (0) or RELEASED (1)"));
  }
  for (const auto& [bits, ratio] : options.ratio_by_bits()) {
    KVMIX_RETURN_IF_ERROR(
        ValidateIsInRange(bits, 1, kMaxBits, "a key of options.ratio_by_bits"));
    KVMIX_RETURN_IF_ERROR(ValidateIsInRange(
        ratio, 0.0, 1.0, absl::StrCat("options.ratio_by_bits[", bits, "]")));
    ratios[bits] = ratio;
  }
  return ratios;
}

const bool kRegistered =
    Registry<RecencyPolicy>::Get().Add<PivotalContextOptions>(
        "pivotal_context",
        "a share of the window stays in full precision (KVmix's RPC)",
        [](const PivotalContextOptions& options)
            -> Registry<RecencyPolicy>::Result {
          KVMIX_ASSIGN_OR_RETURN(RatioByBits ratios, Ratios(options));
          const int group = options.group() == 0 ? 32 : options.group();
          KVMIX_RETURN_IF_ERROR(ValidateIsPositive(group, "options.group"));
          KVMIX_RETURN_IF_ERROR(ValidateIsNonNegative(options.sink_tokens(),
                                                      "options.sink_tokens"));
          return std::make_unique<PivotalContext>(std::move(ratios), group,
                                                  options.sink_tokens());
        });

}  // namespace
}  // namespace kvmix
