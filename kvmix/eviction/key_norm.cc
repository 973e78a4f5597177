// The tokens whose keys have the smallest L2 norm (Devoto et al., arXiv
// 2406.11430: such keys receive most attention). Sees no query.
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/eviction/scored_eviction.h"

namespace kvmix {
namespace {

class KeyNorm final : public ScoredEviction {
 public:
  using ScoredEviction::ScoredEviction;
  EvictionSignals signals() const override { return {.keys = true}; }
  void Score(const EvictionState& state, int head,
             float* scores) const override {
    const EvictionHead& h = state.heads[head];
    const int dim = state.head_dim;
    for (int64_t t = 0; t < h.num_tokens; ++t)
      scores[t] = -static_cast<float>(SumOfSquares(h.keys + t * dim, dim));
  }
};

const bool kRegistered =
    Registry<EvictionPolicy>::Get().Add<ScoredEvictionOptions>(
        "key_norm", "the smallest keys",
        [](const ScoredEvictionOptions& options)
            -> Registry<EvictionPolicy>::Result {
          KVMIX_ASSIGN_OR_RETURN(const EvictionBudget budget,
                                 CompletedBudget(options.budget(), {}));
          return std::make_unique<KeyNorm>(budget);
        });

}  // namespace
}  // namespace kvmix
