// How concentrated a layer's attention is,
//   score = mean over query heads and tokens of 1 - H(w) / log n
// H the entropy of the weights w of the n tokens that a token sees: 1 if it
// looks at one token alone, 0 if at all alike. The conjecture is that a layer
// which picks single tokens needs them exactly; keys and values score the same.
// Needs one forward pass.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "kvmix/base/registry.h"
#include "kvmix/importance/causal_weights.h"
#include "kvmix/importance/trace_estimator.h"

namespace kvmix {
namespace {

// Of query head `head`; 0 for a prompt of one token.
double Concentration(const LayerTrace& trace, int head) {
  const RowMatrix weights = CausalWeights(trace, trace.key_states, head);
  double sum = 0;
  int64_t count = 0;
  for (int64_t t = 1; t < trace.num_tokens; ++t) {
    const int64_t first = FirstVisible(trace, t);
    if (first == t) continue;
    double entropy = 0;
    for (int64_t s = first; s <= t; ++s) {
      const double w = weights(t, s);
      if (w > 0) entropy -= w * std::log(w);
    }
    const double most = std::log(static_cast<double>(t + 1 - first));
    sum += std::max(0.0, 1 - entropy / most);
    ++count;
  }
  return count == 0 ? 0 : sum / static_cast<double>(count);
}

class AttentionEntropy final : public TraceEstimator {
 public:
  AttentionEntropy() : TraceEstimator("attention_entropy") {}
  SignalSet RequiredSignals() const override {
    return {Signal::kQueryStates, Signal::kKeyStates};
  }

 protected:
  LayerScores ScoresOf(const LayerTrace& trace) const override {
    LayerScores scores{.key_heads = std::vector<double>(trace.num_kv_heads)};
    for (int head = 0; head < trace.num_heads; ++head) {
      const double score = Concentration(trace, head);
      scores.key += score / trace.num_heads;
      scores.key_heads[KvHeadOf(trace, head)] +=
          score * trace.num_kv_heads / trace.num_heads;
    }
    scores.value = scores.key;
    scores.value_heads = scores.key_heads;
    return scores;
  }
};

const bool kRegistered = Registry<ImportanceEstimator>::Get().Add(
    "attention_entropy", "how concentrated a layer's attention is",
    [](const google::protobuf::Empty&)
        -> Registry<ImportanceEstimator>::Result {
      return std::make_unique<AttentionEntropy>();
    });

}  // namespace
}  // namespace kvmix
