// KeyDiff (Park et al., arXiv 2504.15364): the tokens whose keys differ most
// from the others, that is, have the least cosine with the mean of the
// normalised keys. Sees no query.
#include <cmath>
#include <memory>
#include <vector>

#include "kvmix/base/registry.h"
#include "kvmix/eviction/scored_eviction.h"

namespace kvmix {
namespace {

class KeyDiff final : public ScoredEviction {
 public:
  using ScoredEviction::ScoredEviction;
  EvictionSignals signals() const override { return {.keys = true}; }
  void Score(const EvictionState& state, int head,
             float* scores) const override {
    const EvictionHead& h = state.heads[head];
    const int dim = state.head_dim;
    std::vector<double> mean(dim);  // of the normalised keys, times N
    const auto norm = [&](int64_t t) {
      const double squares = SumOfSquares(h.keys + t * dim, dim);
      return squares > 0 ? std::sqrt(squares) : 1.0;
    };
    for (int64_t t = 0; t < h.num_tokens; ++t) {
      const double size = norm(t);
      for (int d = 0; d < dim; ++d) mean[d] += h.keys[t * dim + d] / size;
    }
    for (int64_t t = 0; t < h.num_tokens; ++t) {
      double product = 0;
      for (int d = 0; d < dim; ++d) product += h.keys[t * dim + d] * mean[d];
      scores[t] = -static_cast<float>(product / norm(t));
    }
  }
};

const bool kRegistered =
    Registry<EvictionPolicy>::Get().Add<ScoredEvictionOptions>(
        "key_diff", "keys that differ most from the others (KeyDiff)",
        [](const ScoredEvictionOptions& options)
            -> Registry<EvictionPolicy>::Result {
          KVMIX_ASSIGN_OR_RETURN(const EvictionBudget budget,
                                 CompletedBudget(options.budget(), {}));
          return std::make_unique<KeyDiff>(budget);
        });

}  // namespace
}  // namespace kvmix
