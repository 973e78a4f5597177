// The diagonal Fisher information of a layer's cached states: the sum of
// squared gradients of the loss with respect to its keys and values, by which
// KVQuant (arXiv 2401.18079) weighs errors. Only the order of layers means
// something: the error itself, which fisher_delta takes in, is missing.
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/importance/head_norms.h"
#include "kvmix/importance/trace_estimator.h"

namespace kvmix {
namespace {

class Fisher final : public TraceEstimator {
 public:
  Fisher() : TraceEstimator("fisher") {}
  SignalSet RequiredSignals() const override {
    return {Signal::kKeyStateGradient, Signal::kValueStateGradient};
  }

 protected:
  LayerScores ScoresOf(const LayerTrace& trace) const override {
    LayerScores scores{
        .key_heads = SquaresOfHeads(trace.key_state_gradient, trace.num_tokens,
                                    trace.num_kv_heads, trace.head_dim),
        .value_heads =
            SquaresOfHeads(trace.value_state_gradient, trace.num_tokens,
                           trace.num_kv_heads, trace.head_dim)};
    scores.key = Sum(scores.key_heads);
    scores.value = Sum(scores.value_heads);
    return scores;
  }
};

const bool kRegistered = Registry<ImportanceEstimator>::Get().Add(
    "fisher", "sum of squared gradients of the cached states (KVQuant)",
    [](const google::protobuf::Empty&)
        -> Registry<ImportanceEstimator>::Result {
      return std::make_unique<Fisher>();
    });

}  // namespace
}  // namespace kvmix
