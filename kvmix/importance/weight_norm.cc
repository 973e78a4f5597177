// Control: the Frobenius norms of W_k and W_v, which no prompt changes. KVmix
// (Li et al., arXiv 2506.08018) shows maps of them beside its gradients.
#include <cmath>
#include <cstdint>
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/importance/head_norms.h"
#include "kvmix/importance/importance_estimator.h"
#include "kvmix/importance/score_accumulator.h"

namespace kvmix {
namespace {

class WeightNorm final : public ImportanceEstimator {
 public:
  SignalSet RequiredSignals() const override {
    return {Signal::kKeyProjection, Signal::kValueProjection};
  }

  absl::Status Start(const ProfileContext& context) override {
    scores_ = ScoreAccumulator(context.num_layers);
    return absl::OkStatus();
  }

  absl::Status Observe(const LayerTrace& trace) override {
    const int64_t head_size = int64_t{trace.head_dim} * trace.hidden_size;
    LayerScores scores;
    scores.key_heads = SquaresOfHeads(trace.key_projection, /*num_rows=*/1,
                                      trace.num_kv_heads, head_size);
    scores.value_heads = SquaresOfHeads(trace.value_projection, /*num_rows=*/1,
                                        trace.num_kv_heads, head_size);
    scores.key = std::sqrt(Sum(scores.key_heads));
    scores.value = std::sqrt(Sum(scores.value_heads));
    for (double& head : scores.key_heads) head = std::sqrt(head);
    for (double& head : scores.value_heads) head = std::sqrt(head);
    return scores_.Add(trace, scores);
  }

  absl::StatusOr<ImportanceProfile> Finish() override {
    return scores_.Profile("weight_norm", ImportanceProfile::RANK_ONLY);
  }

 private:
  ScoreAccumulator scores_;
};

const bool kRegistered = Registry<ImportanceEstimator>::Get().Add(
    "weight_norm", "control: Frobenius norms of W_k and W_v",
    [](const google::protobuf::Empty&)
        -> Registry<ImportanceEstimator>::Result {
      return std::make_unique<WeightNorm>();
    });

}  // namespace
}  // namespace kvmix
