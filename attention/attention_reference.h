// Causal attention by the textbook, in double: all scores, then softmax, then
// the weighted sum. Shares nothing with the fast code. testonly.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace kvmix::testing {

struct ReferenceAttention {
  int num_heads = 0, num_kv_heads = 0, head_dim = 0;  // H, G, D
  double scale = 0;
  int64_t sliding_window = 0;

  // queries [T, H, D], keys and values [N, G, D]; the queries are the last T of
  // the N tokens. Returns [T, H, D]. condition, if given, becomes [T, H]: the
  // largest sum over channels of |q k| * scale, which bounds the rounding error
  // of a score.
  std::vector<double> operator()(const std::vector<float>& queries,
                                 const std::vector<float>& keys,
                                 const std::vector<float>& values,
                                 std::vector<double>* condition) const {
    const int64_t row = int64_t{num_heads} * head_dim;
    const int64_t kv_row = int64_t{num_kv_heads} * head_dim;
    const int64_t T = static_cast<int64_t>(queries.size()) / row;
    const int64_t N = static_cast<int64_t>(keys.size()) / kv_row;
    std::vector<double> out(queries.size(), 0.0);
    condition->assign(T * num_heads, 0.0);
    for (int64_t t = 0; t < T; ++t) {
      const int64_t position = N - T + t;
      for (int h = 0; h < num_heads; ++h) {
        const int g = h / (num_heads / num_kv_heads);
        std::vector<double> weights(N, 0.0);
        double sum = 0, max = -1e300;
        const auto visible = [&](int64_t n) {
          return n <= position &&
                 (sliding_window == 0 || position - n < sliding_window);
        };
        for (int64_t n = 0; n < N; ++n) {
          if (!visible(n)) continue;
          double size = 0;
          for (int d = 0; d < head_dim; ++d) {
            const double product =
                static_cast<double>(queries[t * row + h * head_dim + d]) *
                keys[n * kv_row + g * head_dim + d];
            weights[n] += product * scale;
            size += std::fabs(product) * scale;
          }
          max = std::max(max, weights[n]);
          double& bound = (*condition)[t * num_heads + h];
          bound = std::max(bound, size);
        }
        for (int64_t n = 0; n < N; ++n) {
          if (!visible(n)) continue;
          weights[n] = std::exp(weights[n] - max);
          sum += weights[n];
        }
        for (int64_t n = 0; n < N; ++n) {
          if (!visible(n)) continue;
          for (int d = 0; d < head_dim; ++d)
            out[t * row + h * head_dim + d] +=
                weights[n] / sum * values[n * kv_row + g * head_dim + d];
        }
      }
    }
    return out;
  }
};

}  // namespace kvmix::testing
