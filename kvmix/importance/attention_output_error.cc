// The relative error of a layer's attention output when its keys (values) are
// stored in a format,
//   loss = mean over query heads and tokens of || o_quantized - o || / || o ||
// KVTuner's e_o (arXiv 2502.04420). Needs one forward pass; attention is
// computed anew for every format of keys.
#include <cstdint>
#include <memory>
#include <vector>

#include "kvmix/base/registry.h"
#include "kvmix/importance/causal_weights.h"
#include "kvmix/importance/format_estimator.h"

namespace kvmix {
namespace {

// What query head `head` reads of `states` [T, G, D]: [T, D].
HeadRows RowsOf(const LayerTrace& trace, const float* states, int head) {
  return RowsOfHead(states, trace.num_tokens, trace.num_kv_heads,
                    trace.head_dim, KvHeadOf(trace, head));
}

class AttentionOutputError final : public FormatEstimator {
 public:
  AttentionOutputError()
      : FormatEstimator("attention_output_error",
                        ImportanceProfile::RELATIVE_ERROR) {}

  SignalSet RequiredSignals() const override {
    return {Signal::kQueryStates, Signal::kKeyStates, Signal::kValueStates};
  }

 protected:
  void StartTrace(const LayerTrace& trace) override {
    weights_.clear();
    outputs_.clear();
    for (int head = 0; head < trace.num_heads; ++head) {
      weights_.push_back(CausalWeights(trace, trace.key_states, head));
      outputs_.push_back(weights_[head] *
                         RowsOf(trace, trace.value_states, head));
    }
  }

  SideLoss LossOf(const LayerTrace& trace, Side side,
                  const std::vector<float>& error) const override {
    std::vector<float> keys;
    if (side == Side::kKey) {
      keys = error;
      for (size_t i = 0; i < keys.size(); ++i) keys[i] += trace.key_states[i];
    }
    SideLoss loss{.heads = std::vector<double>(trace.num_kv_heads)};
    for (int head = 0; head < trace.num_heads; ++head) {
      const RowMatrix change =
          side == Side::kValue
              ? RowMatrix(weights_[head] * RowsOf(trace, error.data(), head))
              : RowMatrix(
                    (CausalWeights(trace, keys.data(), head) - weights_[head]) *
                    RowsOf(trace, trace.value_states, head));
      double sum = 0;
      for (int64_t t = 0; t < trace.num_tokens; ++t) {
        const double norm = outputs_[head].row(t).cast<double>().norm();
        if (norm > 0) sum += change.row(t).cast<double>().norm() / norm;
      }
      sum /= static_cast<double>(trace.num_tokens);
      loss.layer += sum / trace.num_heads;
      loss.heads[KvHeadOf(trace, head)] +=
          sum * trace.num_kv_heads / trace.num_heads;
    }
    return loss;
  }

 private:
  // Of the trace, exact, for each query head: [T, T] and [T, D].
  std::vector<RowMatrix> weights_, outputs_;
};

const bool kRegistered = Registry<ImportanceEstimator>::Get().Add(
    "attention_output_error",
    "relative error of the attention output under each format (KVTuner)",
    [](const google::protobuf::Empty&)
        -> Registry<ImportanceEstimator>::Result {
      return std::make_unique<AttentionOutputError>();
    });

}  // namespace
}  // namespace kvmix
