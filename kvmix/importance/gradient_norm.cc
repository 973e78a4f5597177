// The importance of KVmix (Li et al., arXiv 2506.08018, section "KV importance
// profiler"): the Frobenius norm of the loss gradient with respect to a layer's
// key and value projection,
//   s_k = || dL/dW_k ||_F    s_v = || dL/dW_v ||_F
// averaged over prompts; L is the mean cross-entropy of a prompt in nats. Only
// the order of layers means something: keys are compared with keys, values with
// values.
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"
#include "kvmix/importance/gradient_norm.pb.h"
#include "kvmix/importance/head_norms.h"
#include "kvmix/importance/importance_estimator.h"
#include "kvmix/importance/score_accumulator.h"

namespace kvmix {
namespace {

class GradientNorm final : public ImportanceEstimator {
 public:
  explicit GradientNorm(const GradientNormOptions& options)
      : options_(options) {}

  SignalSet RequiredSignals() const override {
    return {Signal::kKeyProjectionGradient, Signal::kValueProjectionGradient};
  }

  int LabelShift() const override { return options_.label_shift(); }

  absl::Status Start(const ProfileContext& context) override {
    scores_ = ScoreAccumulator(context.num_layers);
    sums_.assign(context.num_layers, {});
    return absl::OkStatus();
  }

  absl::Status Observe(const LayerTrace& trace) override {
    const float* key = trace.key_projection_gradient;
    const float* value = trace.value_projection_gradient;
    if (options_.averaging() == GradientNormOptions::NORM_OF_MEAN) {
      Sums& sums = sums_[trace.layer];
      sums.shape = trace;
      const int64_t size =
          int64_t{trace.num_kv_heads} * trace.head_dim * trace.hidden_size;
      AddTo(key, size, sums.key);
      AddTo(value, size, sums.value);
    }
    return scores_.Add(trace, ProjectionNorms(key, value, trace));
  }

  absl::StatusOr<ImportanceProfile> Finish() override {
    KVMIX_ASSIGN_OR_RETURN(
        ImportanceProfile profile,
        scores_.Profile("gradient_norm", ImportanceProfile::RANK_ONLY));
    if (options_.averaging() == GradientNormOptions::NORM_OF_MEAN) {
      for (int i = 0; i < profile.layer_size(); ++i)
        SetNormOfMean(sums_[i], profile.num_prompts(),
                      *profile.mutable_layer(i));
    }
    return profile;
  }

 private:
  // Of the gradients of one layer over prompts.
  struct Sums {
    LayerTrace shape;
    std::vector<float> key, value;
  };

  static void AddTo(const float* x, int64_t size, std::vector<float>& sum) {
    sum.resize(size);
    for (int64_t i = 0; i < size; ++i) sum[i] += x[i];
  }

  // The standard errors, of the mean of norms, say nothing of this.
  static void SetNormOfMean(const Sums& sums, int num_prompts,
                            LayerImportance& layer) {
    LayerScores scores =
        ProjectionNorms(sums.key.data(), sums.value.data(), sums.shape);
    layer.set_key(scores.key / num_prompts);
    layer.set_value(scores.value / num_prompts);
    layer.clear_key_stderr();
    layer.clear_value_stderr();
    for (int g = 0; g < layer.key_head_size(); ++g) {
      layer.set_key_head(g, scores.key_heads[g] / num_prompts);
      layer.set_value_head(g, scores.value_heads[g] / num_prompts);
    }
  }

  const GradientNormOptions options_;  // defaults filled in
  ScoreAccumulator scores_;
  std::vector<Sums> sums_;  // [L], only for NORM_OF_MEAN
};

const bool kRegistered =
    Registry<ImportanceEstimator>::Get().Add<GradientNormOptions>(
        "gradient_norm",
        "Frobenius norm of the loss gradient of W_k and W_v (KVmix)",
        [](GradientNormOptions options)
            -> Registry<ImportanceEstimator>::Result {
          if (options.label_shift() == 0) options.set_label_shift(1);
          KVMIX_RETURN_IF_ERROR(ValidateIsInRange(options.label_shift(), 1, 2,
                                                  "options.label_shift"));
          if (!GradientNormOptions::Averaging_IsValid(options.averaging())) {
            return absl::InvalidArgumentError(absl::StrCat(
                "options.averaging is ", options.averaging(),
                " but must be MEAN_OF_NORMS (0) or NORM_OF_MEAN (1)"));
          }
          return std::make_unique<GradientNorm>(options);
        });

}  // namespace
}  // namespace kvmix
