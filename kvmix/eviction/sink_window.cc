// StreamingLLM (Xiao et al., arXiv 2309.17453): the first tokens, which gather
// attention whatever they say ("attention sinks"), and the newest ones. Keys
// keep the positions that they have in the text; the authors count them anew
// within the cache.
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/eviction/scored_eviction.h"

namespace kvmix {
namespace {

class SinkWindow final : public ScoredEviction {
 public:
  using ScoredEviction::ScoredEviction;
  void Score(const EvictionState& state, int head,
             float* scores) const override {
    const EvictionHead& h = state.heads[head];
    // Exact: a text is shorter than 2^24 tokens.
    for (int64_t t = 0; t < h.num_tokens; ++t)
      scores[t] = static_cast<float>(h.positions[t]);
  }
};

const bool kRegistered =
    Registry<EvictionPolicy>::Get().Add<ScoredEvictionOptions>(
        "sink_window", "the first tokens and the newest (StreamingLLM)",
        [](const ScoredEvictionOptions& options)
            -> Registry<EvictionPolicy>::Result {
          KVMIX_ASSIGN_OR_RETURN(const EvictionBudget budget,
                                 CompletedBudget(options.budget(), {}));
          return std::make_unique<SinkWindow>(budget);
        });

}  // namespace
}  // namespace kvmix
