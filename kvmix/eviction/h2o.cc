// H2O (Zhang et al., arXiv 2306.14048): heavy hitters, the tokens that have
// received most attention since they came, and the newest ones, half of the
// budget each.
#include <algorithm>
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/eviction/scored_eviction.h"

namespace kvmix {
namespace {

class H2o final : public ScoredEviction {
 public:
  using ScoredEviction::ScoredEviction;
  EvictionSignals signals() const override { return {.received = true}; }
  void Score(const EvictionState& state, int head,
             float* scores) const override {
    const EvictionHead& h = state.heads[head];
    std::copy_n(h.received, h.num_tokens, scores);
  }
};

const bool kRegistered =
    Registry<EvictionPolicy>::Get().Add<ScoredEvictionOptions>(
        "h2o", "most attention received since they came (heavy hitters)",
        [](const ScoredEvictionOptions& options)
            -> Registry<EvictionPolicy>::Result {
          KVMIX_ASSIGN_OR_RETURN(
              const EvictionBudget budget,
              CompletedBudget(options.budget(),
                              {.first_tokens = 0, .recent_share = 0.5}));
          return std::make_unique<H2o>(budget);
        });

}  // namespace
}  // namespace kvmix
