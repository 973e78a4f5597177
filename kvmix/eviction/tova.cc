// TOVA (Oren et al., arXiv 2401.06104): the tokens to which the newest query
// attends most, mean over the query heads of a KV head.
#include <algorithm>
#include <memory>
#include <vector>

#include "kvmix/base/registry.h"
#include "kvmix/eviction/scored_eviction.h"

namespace kvmix {
namespace {

class Tova final : public ScoredEviction {
 public:
  using ScoredEviction::ScoredEviction;
  EvictionSignals signals() const override { return {.query_window = 1}; }
  void Score(const EvictionState& state, int head,
             float* scores) const override {
    const std::vector<float> mean = MeanAttention(state.heads[head]);
    std::copy(mean.begin(), mean.end(), scores);
  }
};

const bool kRegistered =
    Registry<EvictionPolicy>::Get().Add<ScoredEvictionOptions>(
        "tova", "most attention of the newest query",
        [](const ScoredEvictionOptions& options)
            -> Registry<EvictionPolicy>::Result {
          KVMIX_ASSIGN_OR_RETURN(
              const EvictionBudget budget,
              CompletedBudget(options.budget(),
                              {.first_tokens = 0, .recent_tokens = 1}));
          return std::make_unique<Tova>(budget);
        });

}  // namespace
}  // namespace kvmix
