#include "kvmix/importance/causal_weights.h"

#include <algorithm>
#include <cmath>

namespace kvmix {

HeadRows RowsOfHead(const float* states, int64_t num_tokens, int num_heads,
                    int head_dim, int head) {
  return HeadRows(states + int64_t{head} * head_dim, num_tokens, head_dim,
                  Eigen::OuterStride<>(int64_t{num_heads} * head_dim));
}

int64_t FirstVisible(const LayerTrace& trace, int64_t t) {
  if (trace.sliding_window == 0) return 0;
  return std::max<int64_t>(0, t + 1 - trace.sliding_window);
}

int KvHeadOf(const LayerTrace& trace, int head) {
  return head / (trace.num_heads / trace.num_kv_heads);
}

RowMatrix CausalWeights(const LayerTrace& trace, const float* keys, int head) {
  const int64_t tokens = trace.num_tokens;
  const HeadRows q = RowsOfHead(trace.query_states, tokens, trace.num_heads,
                                trace.head_dim, head);
  const HeadRows k = RowsOfHead(keys, tokens, trace.num_kv_heads,
                                trace.head_dim, KvHeadOf(trace, head));
  RowMatrix weights = q * k.transpose();
  const float scale = 1.0f / std::sqrt(static_cast<float>(trace.head_dim));
  for (int64_t t = 0; t < tokens; ++t) {
    auto row = weights.row(t);
    const int64_t first = FirstVisible(trace, t);
    auto seen = row.segment(first, t + 1 - first);
    seen = ((seen.array() - seen.maxCoeff()) * scale).exp().matrix().eval();
    seen /= seen.sum();
    row.head(first).setZero();
    row.tail(tokens - t - 1).setZero();
  }
  return weights;
}

}  // namespace kvmix
