// Control: tokens that stay are drawn at random, for each layer and KV head.
#include "kvmix/base/random.h"

#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/eviction/random.pb.h"
#include "kvmix/eviction/scored_eviction.h"

namespace kvmix {
namespace {

class RandomEviction final : public ScoredEviction {
 public:
  RandomEviction(const EvictionBudget& budget, uint64_t seed)
      : ScoredEviction(budget), seed_(seed) {}
  // A token's score never changes.
  void Score(const EvictionState& state, int head,
             float* scores) const override {
    const EvictionHead& h = state.heads[head];
    const uint64_t stream =
        static_cast<uint64_t>(state.layer) << 32 | static_cast<uint32_t>(head);
    for (int64_t t = 0; t < h.num_tokens; ++t)
      scores[t] = static_cast<float>(
          CounterRandom(seed_, stream, h.positions[t]).Uniform());
  }

 private:
  const uint64_t seed_;
};

const bool kRegistered =
    Registry<EvictionPolicy>::Get().Add<RandomEvictionOptions>(
        "random", "control: at random",
        [](const RandomEvictionOptions& options)
            -> Registry<EvictionPolicy>::Result {
          KVMIX_ASSIGN_OR_RETURN(const EvictionBudget budget,
                                 CompletedBudget(options.budget()));
          return std::make_unique<RandomEviction>(budget, options.seed());
        });

}  // namespace
}  // namespace kvmix
