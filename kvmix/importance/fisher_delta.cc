// Second order with the diagonal Fisher matrix in place of the Hessian: how
// much the loss rises if the quantization error of a format is added to a
// layer's keys (values),
//   loss = T / 2 sum_i g_i^2 e_i^2,   g = dL/dK, e = K_quantized - K
// where L is the mean over T tokens. A sum of T independent token losses has
// the gradient T g, whose squares are the Fisher diagonal of the sum; 1 / T of
// it is that of the mean. KVQuant (arXiv 2401.18079) weighs errors by squared
// gradients likewise.
#include <cstdint>
#include <memory>
#include <vector>

#include "kvmix/base/registry.h"
#include "kvmix/importance/format_estimator.h"

namespace kvmix {
namespace {

class FisherDelta final : public FormatEstimator {
 public:
  FisherDelta() : FormatEstimator("fisher_delta", ImportanceProfile::NATS) {}

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
    size_t i = 0;
    for (int64_t t = 0; t < trace.num_tokens; ++t) {
      for (double& head : loss.heads) {
        for (int d = 0; d < trace.head_dim; ++d, ++i) {
          const double term = static_cast<double>(gradient[i]) * error[i];
          head += term * term;
        }
      }
    }
    for (double& head : loss.heads) {
      head *= static_cast<double>(trace.num_tokens) / 2;
      loss.layer += head;
    }
    return loss;
  }
};

const bool kRegistered = Registry<ImportanceEstimator>::Get().Add(
    "fisher_delta",
    "second-order rise of the loss under each format's actual error",
    [](const google::protobuf::Empty&)
        -> Registry<ImportanceEstimator>::Result {
      return std::make_unique<FisherDelta>();
    });

}  // namespace
}  // namespace kvmix
