// The relative error of a layer's keys (values) in every format offered,
//   loss = || K_quantized - K ||_F / || K ||_F
// KVTuner's e_k and e_v (arXiv 2502.04420), and the points that distortion
// curves are fitted to. Needs one forward pass and no gradients; it does not
// know what the model makes of the error.
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "kvmix/base/registry.h"
#include "kvmix/importance/format_estimator.h"

namespace kvmix {
namespace {

// 0 if there is nothing to lose.
double Ratio(double error_squares, double squares) {
  return squares > 0 ? std::sqrt(error_squares / squares) : 0;
}

class QuantizationError final : public FormatEstimator {
 public:
  QuantizationError()
      : FormatEstimator("quantization_error",
                        ImportanceProfile::RELATIVE_ERROR) {}

  SignalSet RequiredSignals() const override {
    return {Signal::kKeyStates, Signal::kValueStates};
  }

 protected:
  SideLoss LossOf(const LayerTrace& trace, Side side,
                  const std::vector<float>& error) const override {
    const float* x = side == Side::kKey ? trace.key_states : trace.value_states;
    std::vector<double> errors(trace.num_kv_heads), squares(trace.num_kv_heads);
    size_t i = 0;
    for (int64_t t = 0; t < trace.num_tokens; ++t) {
      for (int head = 0; head < trace.num_kv_heads; ++head) {
        for (int d = 0; d < trace.head_dim; ++d, ++i) {
          errors[head] += static_cast<double>(error[i]) * error[i];
          squares[head] += static_cast<double>(x[i]) * x[i];
        }
      }
    }
    SideLoss loss;
    double all_errors = 0, all_squares = 0;
    for (int head = 0; head < trace.num_kv_heads; ++head) {
      loss.heads.push_back(Ratio(errors[head], squares[head]));
      all_errors += errors[head];
      all_squares += squares[head];
    }
    loss.layer = Ratio(all_errors, all_squares);
    return loss;
  }
};

const bool kRegistered = Registry<ImportanceEstimator>::Get().Add(
    "quantization_error",
    "relative error of the states in each format (KVTuner)",
    [](const google::protobuf::Empty&)
        -> Registry<ImportanceEstimator>::Result {
      return std::make_unique<QuantizationError>();
    });

}  // namespace
}  // namespace kvmix
