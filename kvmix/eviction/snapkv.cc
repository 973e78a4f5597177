// SnapKV (Li et al., arXiv 2404.14469): the newest queries vote. A token's
// score is their mean attention to it, averaged over neighbouring tokens so
// that words are kept whole, mean over the query heads of a KV head.
#include <algorithm>
#include <memory>
#include <vector>

#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"
#include "kvmix/eviction/scored_eviction.h"
#include "kvmix/eviction/snapkv.pb.h"

namespace kvmix {
namespace {

class SnapKv final : public ScoredEviction {
 public:
  SnapKv(const EvictionBudget& budget, int64_t window, int64_t pool)
      : ScoredEviction(budget), window_(window), pool_(pool) {}
  EvictionSignals signals() const override { return {.query_window = window_}; }
  void Score(const EvictionState& state, int head,
             float* scores) const override {
    const std::vector<float> mean = MeanAttention(state.heads[head]);
    const int64_t tokens = static_cast<int64_t>(mean.size());
    const int64_t reach = pool_ / 2;
    for (int64_t t = 0; t < tokens; ++t) {
      double sum = 0;
      for (int64_t i = std::max<int64_t>(0, t - reach);
           i <= std::min(tokens - 1, t + reach); ++i)
        sum += mean[i];
      scores[t] = static_cast<float>(sum / static_cast<double>(pool_));
    }
  }

 private:
  const int64_t window_, pool_;
};

const bool kRegistered = Registry<EvictionPolicy>::Get().Add<SnapKvOptions>(
    "snapkv", "most attention of the newest queries, pooled",
    [](const SnapKvOptions& options) -> Registry<EvictionPolicy>::Result {
      const int window = options.window() == 0 ? 64 : options.window();
      const int pool = options.pool() == 0 ? 5 : options.pool();
      KVMIX_RETURN_IF_ERROR(ValidateIsPositive(window, "options.window"));
      if (pool < 1 || pool % 2 == 0)
        return absl::InvalidArgumentError(absl::StrCat(
            "options.pool is ", pool, " but must be positive and odd"));
      KVMIX_ASSIGN_OR_RETURN(
          const EvictionBudget budget,
          CompletedBudget(options.budget(),
                          {.first_tokens = 0, .recent_tokens = window}));
      return std::make_unique<SnapKv>(budget, window, pool);
    });

}  // namespace
}  // namespace kvmix
