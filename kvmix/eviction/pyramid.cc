// PyramidKV (Cai et al., arXiv 2406.02069): lower layers keep more tokens than
// higher ones, the mean being the budget. With w newest tokens that stay, n
// tokens in the budget and L layers, layer l keeps
//   w + max - (max - min) l / (L - 1),  min = (n - w) / steepness,
//   max = 2 (n - w) - min
// tokens of each head, chosen by another policy.
#include <algorithm>
#include <memory>
#include <vector>

#include "kvmix/base/registry.h"
#include "kvmix/eviction/pyramid.pb.h"
#include "kvmix/eviction/scored_eviction.h"
#include "kvmix/eviction/wrapped_eviction.h"

namespace kvmix {
namespace {

class Pyramid final : public WrappedEviction {
 public:
  Pyramid(std::unique_ptr<ScoredEviction> inner, double steepness)
      : WrappedEviction(std::move(inner)), steepness_(steepness) {}
  std::vector<int64_t> Keep(const EvictionState& state) const override {
    std::vector<int64_t> keep = inner().Keep(state);
    for (int64_t& tokens : keep) tokens = OfLayer(state, tokens);
    return keep;
  }
  std::vector<int64_t> KeepByScores(
      const EvictionState& state,
      const std::vector<std::vector<float>>&) const override {
    return Keep(state);
  }

 private:
  int64_t OfLayer(const EvictionState& state, int64_t tokens) const {
    const int64_t recent = std::min(tokens, budget().recent_tokens());
    const double shared = static_cast<double>(tokens - recent);
    const double min = shared / steepness_, max = 2 * shared - min;
    const double height =
        state.num_layers == 1
            ? 0.5
            : static_cast<double>(state.layer) / (state.num_layers - 1);
    return recent + static_cast<int64_t>(max - (max - min) * height);
  }

  const double steepness_;
};

const bool kRegistered = Registry<EvictionPolicy>::Get().Add<PyramidOptions>(
    "pyramid",
    "lower layers keep more tokens (PyramidKV); scores of another policy",
    [](const PyramidOptions& options) -> Registry<EvictionPolicy>::Result {
      const double steepness =
          options.steepness() == 0 ? 20 : options.steepness();
      if (!(steepness >= 1))
        return absl::InvalidArgumentError(absl::StrCat(
            "options.steepness is ", steepness, " but must be at least 1"));
      KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<ScoredEviction> inner,
                             MakeInnerPolicy(options.inner(), "snapkv"));
      return std::make_unique<Pyramid>(std::move(inner), steepness);
    });

}  // namespace
}  // namespace kvmix
