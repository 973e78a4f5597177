// MeanNorm: the mean L2 norm of a layer's keys, or of its values, as the score
// of both. "key_norm" and "value_norm" differ in which.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kvmix/importance/head_norms.h"
#include "kvmix/importance/trace_estimator.h"
#include "quant/quantizer.h"

namespace kvmix {

class MeanNorm final : public TraceEstimator {
 public:
  MeanNorm(std::string name, Side side)
      : TraceEstimator(std::move(name)), side_(side) {}
  SignalSet RequiredSignals() const override {
    return {side_ == Side::kKey ? Signal::kKeyStates : Signal::kValueStates};
  }

 protected:
  LayerScores ScoresOf(const LayerTrace& trace) const override {
    const std::vector<double> heads = MeanNormsOfHeads(
        side_ == Side::kKey ? trace.key_states : trace.value_states,
        trace.num_tokens, trace.num_kv_heads, trace.head_dim);
    const double mean = Sum(heads) / trace.num_kv_heads;
    return {
        .key = mean, .value = mean, .key_heads = heads, .value_heads = heads};
  }

 private:
  const Side side_;
};

}  // namespace kvmix
