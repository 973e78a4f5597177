// Expected attention (Devoto et al., arXiv 2510.00636): if future queries are
// normal with mean m and covariance S, a key k expects the weight
//   exp(m.k / sqrt(D) + k.S.k / (2 D)),
// here normalised over the tokens, mean over the query heads of a KV head, and
// times |v|. m.k and k.S.k are the mean and the variance of the scores that k
// has with the newest queries. The authors average future rotations of RoPE;
// here the newest queries, as rotated, stand for future ones.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"
#include "kvmix/eviction/expected_attention.pb.h"
#include "kvmix/eviction/scored_eviction.h"

namespace kvmix {
namespace {

class ExpectedAttention final : public ScoredEviction {
 public:
  ExpectedAttention(const EvictionBudget& budget, int64_t window)
      : ScoredEviction(budget), window_(window) {}
  EvictionSignals signals() const override {
    return {.values = true, .query_window = window_};
  }
  void Score(const EvictionState& state, int head,
             float* scores) const override {
    const EvictionHead& h = state.heads[head];
    std::vector<double> weight(h.num_tokens);
    for (int j = 0; j < h.query_heads; ++j) AddWeights(h, j, weight);
    const int dim = state.head_dim;
    for (int64_t t = 0; t < h.num_tokens; ++t)
      scores[t] = static_cast<float>(
          weight[t] * std::sqrt(SumOfSquares(h.values + t * dim, dim)));
  }

 private:
  // Adds what query head j expects, normalised.
  static void AddWeights(const EvictionHead& h, int j,
                         std::vector<double>& weight) {
    std::vector<double> exponent(h.num_tokens);
    for (int64_t t = 0; t < h.num_tokens; ++t) {
      double sum = 0, squares = 0, count = 0;
      for (int64_t r = j; r < h.score_rows; r += h.query_heads) {
        const double s = h.scores[r * h.num_tokens + t];
        if (!std::isfinite(s)) continue;  // an older query than the token
        sum += s, squares += s * s, count += 1;
      }
      const double mean = sum / count;
      exponent[t] = mean + (squares / count - mean * mean) / 2;
    }
    const double max = *std::max_element(exponent.begin(), exponent.end());
    double total = 0;
    for (double& e : exponent) total += e = std::exp(e - max);
    for (int64_t t = 0; t < h.num_tokens; ++t) weight[t] += exponent[t] / total;
  }

  const int64_t window_;
};

const bool kRegistered =
    Registry<EvictionPolicy>::Get().Add<ExpectedAttentionOptions>(
        "expected_attention",
        "attention that queries like the newest expect, times |v|",
        [](const ExpectedAttentionOptions& options)
            -> Registry<EvictionPolicy>::Result {
          const int window = options.window() == 0 ? 128 : options.window();
          KVMIX_RETURN_IF_ERROR(ValidateIsPositive(window, "options.window"));
          KVMIX_ASSIGN_OR_RETURN(const EvictionBudget budget,
                                 CompletedBudget(options.budget()));
          return std::make_unique<ExpectedAttention>(budget, window);
        });

}  // namespace
}  // namespace kvmix
