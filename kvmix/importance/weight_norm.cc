// Control: the Frobenius norms of W_k and W_v, which no prompt changes. KVmix
// (Li et al., arXiv 2506.08018) shows maps of them beside its gradients.
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/importance/head_norms.h"
#include "kvmix/importance/trace_estimator.h"

namespace kvmix {
namespace {

class WeightNorm final : public TraceEstimator {
 public:
  WeightNorm() : TraceEstimator("weight_norm") {}
  SignalSet RequiredSignals() const override {
    return {Signal::kKeyProjection, Signal::kValueProjection};
  }

 protected:
  LayerScores ScoresOf(const LayerTrace& trace) const override {
    return ProjectionNorms(trace.key_projection, trace.value_projection, trace);
  }
};

const bool kRegistered = Registry<ImportanceEstimator>::Get().Add(
    "weight_norm", "control: Frobenius norms of W_k and W_v",
    [](const google::protobuf::Empty&)
        -> Registry<ImportanceEstimator>::Result {
      return std::make_unique<WeightNorm>();
    });

}  // namespace
}  // namespace kvmix
