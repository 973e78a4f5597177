// First order: how much the loss changes if the quantization error of a format
// is added to a layer's keys (values),
//   loss = | <dL/dK, K_quantized - K> |
// with the actual error of every format offered, averaged over prompts. PM-KVQ
// (arXiv 2505.18610) ranks blocks by a first-order Taylor term likewise. L is
// the mean cross-entropy of a prompt, so the unit is nats a token.
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/base/registry.h"
#include "kvmix/importance/format_estimator.h"
#include "kvmix/importance/gradient_delta.pb.h"

namespace kvmix {
namespace {

class GradientDelta final : public FormatEstimator {
 public:
  explicit GradientDelta(GradientDeltaOptions::Terms terms)
      : FormatEstimator("gradient_delta", ImportanceProfile::NATS),
        terms_(terms) {}

  SignalSet RequiredSignals() const override {
    return {Signal::kKeyStates, Signal::kValueStates, Signal::kKeyStateGradient,
            Signal::kValueStateGradient};
  }

 protected:
  SideLoss LossOf(const LayerTrace& trace, Side side,
                  const std::vector<float>& error) const override {
    const float* gradient = side == Side::kKey ? trace.key_state_gradient
                                               : trace.value_state_gradient;
    SideLoss loss{.heads = std::vector<double>(trace.num_kv_heads)};
    double sum = 0;  // PROMPT: signed
    size_t i = 0;
    for (int64_t t = 0; t < trace.num_tokens; ++t) {
      double token = 0;
      for (double& head : loss.heads) {
        double terms = 0, absolute = 0;
        for (int d = 0; d < trace.head_dim; ++d, ++i) {
          const double term = static_cast<double>(gradient[i]) * error[i];
          terms += term;
          absolute += std::abs(term);
        }
        if (terms_ == GradientDeltaOptions::ELEMENT) terms = absolute;
        token += terms;
        head +=
            terms_ == GradientDeltaOptions::PROMPT ? terms : std::abs(terms);
      }
      sum += terms_ == GradientDeltaOptions::PROMPT ? token : std::abs(token);
    }
    loss.layer = std::abs(sum);
    for (double& head : loss.heads) head = std::abs(head);
    return loss;
  }

 private:
  const GradientDeltaOptions::Terms terms_;
};

const bool kRegistered =
    Registry<ImportanceEstimator>::Get().Add<GradientDeltaOptions>(
        "gradient_delta",
        "first-order change of the loss under each format's actual error",
        [](const GradientDeltaOptions& options)
            -> Registry<ImportanceEstimator>::Result {
          if (!GradientDeltaOptions::Terms_IsValid(options.terms())) {
            return absl::InvalidArgumentError(absl::StrCat(
                "options.terms is ", options.terms(),
                " but must be PROMPT (0), TOKEN (1) or ELEMENT (2)"));
          }
          return std::make_unique<GradientDelta>(options.terms());
        });

}  // namespace
}  // namespace kvmix
