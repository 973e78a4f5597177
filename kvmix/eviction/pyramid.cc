// PyramidKV (Cai et al., arXiv 2406.02069): lower layers keep more tokens than
// higher ones, the mean being the budget. With w tokens that stay in any case,
// n tokens in the budget and L layers, layer l keeps
//   w + max - (max - min) l / (L - 1),  min = (n - w) / steepness,
//   max = 2 (n - w) - min
// tokens of a head, chosen by another policy; n is what that gives the head.
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
    return OfLayer(state, inner().Keep(state));
  }
  std::vector<int64_t> KeepByScores(
      const EvictionState& state,
      const std::vector<std::vector<float>>& scores) const override {
    return OfLayer(state, inner().KeepByScores(state, scores));
  }

 private:
  // The layer's part of `budgets`, one for each head.
  std::vector<int64_t> OfLayer(const EvictionState& state,
                               std::vector<int64_t> budgets) const {
    const double height =
        state.num_layers == 1
            ? 0.5
            : static_cast<double>(state.layer) / (state.num_layers - 1);
    for (int64_t& tokens : budgets) {
      const int64_t staying = std::min(tokens, NumStaying(state.tokens_seen));
      const double shared = static_cast<double>(tokens - staying);
      const double min = shared / steepness_, max = 2 * shared - min;
      tokens = staying + static_cast<int64_t>(max - (max - min) * height);
    }
    return budgets;
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
