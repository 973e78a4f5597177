// AdaKV (Feng et al., arXiv 2407.11550): the KV heads of a layer share one
// budget; tokens compete by score across heads, so that heads whose attention
// is spread keep more. Every head keeps a part of its even share.
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"
#include "kvmix/eviction/ada.pb.h"
#include "kvmix/eviction/scored_eviction.h"
#include "kvmix/eviction/wrapped_eviction.h"

namespace kvmix {
namespace {

class Ada final : public WrappedEviction {
 public:
  Ada(std::unique_ptr<ScoredEviction> inner, double floor)
      : WrappedEviction(std::move(inner)), floor_(floor) {}

  std::vector<int64_t> KeepByScores(
      const EvictionState& state,
      const std::vector<std::vector<float>>& scores) const override {
    const std::vector<int64_t> even = inner().Keep(state);
    std::vector<int64_t> keep(state.heads.size());
    int64_t left = 0;                           // of the budget
    std::vector<std::pair<float, int>> others;  // -score, head
    for (size_t h = 0; h < state.heads.size(); ++h) {
      const EvictionHead& head = state.heads[h];
      std::vector<float> negative;
      for (int64_t t = 0; t < head.num_tokens; ++t) {
        if (t >= head.first_candidate - head.demoted &&
            t < head.first_candidate)
          continue;  // demoted
        if (Stays(state, head, t)) {
          ++keep[h];
        } else {
          negative.push_back(-scores[h][t]);
        }
      }
      std::sort(negative.begin(), negative.end());
      const int64_t least =
          static_cast<int64_t>(floor_ * static_cast<double>(even[h]));
      const int64_t taken =
          std::clamp<int64_t>(least - keep[h], 0, negative.size());
      keep[h] += taken;
      for (size_t i = taken; i < negative.size(); ++i)
        others.push_back({negative[i], static_cast<int>(h)});
      left += even[h] - keep[h];
    }
    std::sort(others.begin(), others.end());
    for (int64_t i = 0; i < std::min<int64_t>(left, others.size()); ++i)
      ++keep[others[i].second];
    return keep;
  }

 private:
  const double floor_;
};

const bool kRegistered = Registry<EvictionPolicy>::Get().Add<AdaOptions>(
    "ada", "KV heads share a budget (AdaKV); scores of another policy",
    [](const AdaOptions& options) -> Registry<EvictionPolicy>::Result {
      const double floor = options.has_floor() ? options.floor() : 0.2;
      KVMIX_RETURN_IF_ERROR(
          ValidateIsInRange(floor, 0.0, 1.0, "options.floor"));
      KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<ScoredEviction> inner,
                             MakeInnerPolicy(options.inner(), "snapkv"));
      return std::make_unique<Ada>(std::move(inner), floor);
    });

}  // namespace
}  // namespace kvmix
