// The importance of KVmix (Li et al., arXiv 2506.08018, section "KV importance
// profiler"): the Frobenius norm of the loss gradient with respect to a layer's
// key and value projection,
//   s_k = || dL/dW_k ||_F    s_v = || dL/dW_v ||_F
// averaged over prompts; L is the mean cross-entropy of a prompt in nats. Only
// the order of layers means something: keys are compared with keys, values with
// values.
#include <cmath>
#include <cstdint>
#include <memory>

#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"
#include "kvmix/importance/gradient_norm.pb.h"
#include "kvmix/importance/importance_estimator.h"
#include "kvmix/importance/score_accumulator.h"

namespace kvmix {
namespace {

// Summed in double: a projection has up to 10^7 elements.
double FrobeniusNorm(const float* x, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(x[i]) * x[i];
  return std::sqrt(sum);
}

class GradientNorm final : public ImportanceEstimator {
 public:
  explicit GradientNorm(int label_shift) : label_shift_(label_shift) {}

  SignalSet RequiredSignals() const override {
    return {Signal::kKeyProjectionGradient, Signal::kValueProjectionGradient};
  }

  int LabelShift() const override { return label_shift_; }

  absl::Status Start(const ProfileContext& context) override {
    scores_ = ScoreAccumulator(context.num_layers);
    return absl::OkStatus();
  }

  absl::Status Observe(const LayerTrace& trace) override {
    const int64_t size = static_cast<int64_t>(trace.num_kv_heads) *
                         trace.head_dim * trace.hidden_size;
    return scores_.Add(trace,
                       FrobeniusNorm(trace.key_projection_gradient, size),
                       FrobeniusNorm(trace.value_projection_gradient, size));
  }

  absl::StatusOr<ImportanceProfile> Finish() override {
    return scores_.Profile("gradient_norm", ImportanceProfile::RANK_ONLY);
  }

 private:
  const int label_shift_;
  ScoreAccumulator scores_;
};

const bool kRegistered =
    Registry<ImportanceEstimator>::Get().Add<GradientNormOptions>(
        "gradient_norm",
        "Frobenius norm of the loss gradient of W_k and W_v (KVmix)",
        [](const GradientNormOptions& options)
            -> Registry<ImportanceEstimator>::Result {
          const int shift =
              options.label_shift() == 0 ? 1 : options.label_shift();
          KVMIX_RETURN_IF_ERROR(
              ValidateIsInRange(shift, 1, 2, "options.label_shift"));
          return std::make_unique<GradientNorm>(shift);
        });

}  // namespace
}  // namespace kvmix
