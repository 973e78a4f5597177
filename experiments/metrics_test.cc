#include "experiments/metrics.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvmix/base/random.h"

namespace kvmix {
namespace {

std::vector<float> RandomLogits(int64_t n, uint64_t stream, double scale) {
  CounterRandom random(7, stream);
  std::vector<float> logits(n);
  for (float& x : logits) x = static_cast<float>(scale * random.Normal());
  return logits;
}

// Textbook softmax in double.
std::vector<double> LogSoftmax(const std::vector<float>& logits) {
  double max = -1e300, sum = 0;
  for (double x : logits) max = std::max(max, x);
  for (double x : logits) sum += std::exp(x - max);
  std::vector<double> result;
  for (double x : logits) result.push_back(x - max - std::log(sum));
  return result;
}

TEST(MetricsTest, NllAndKlMatchTheTextbookInDouble) {
  for (int64_t vocab : {1, 5, 512, 4096, 10001}) {
    const std::vector<float> p = RandomLogits(vocab, 1, 4);
    const std::vector<float> q = RandomLogits(vocab, 2, 3);
    const std::vector<double> log_p = LogSoftmax(p), log_q = LogSoftmax(q);
    double kl = 0;
    for (int64_t i = 0; i < vocab; ++i)
      kl += std::exp(log_p[i]) * (log_p[i] - log_q[i]);
    const LogitsRow p_row = ReduceLogits(p.data(), vocab);
    const LogitsRow q_row = ReduceLogits(q.data(), vocab);
    EXPECT_NEAR(Nll(p_row, vocab / 2), -log_p[vocab / 2], 2e-6) << vocab;
    EXPECT_NEAR(KlDivergence(p_row, q_row, vocab), kl, 1e-6 * (1 + kl))
        << vocab;
    EXPECT_EQ(p_row.argmax, std::max_element(p.begin(), p.end()) - p.begin());
  }
}

TEST(MetricsTest, KlOfEqualLogitsIsExactlyZero) {
  const std::vector<float> p = RandomLogits(5000, 3, 5);
  const LogitsRow row = ReduceLogits(p.data(), 5000);
  EXPECT_EQ(KlDivergence(row, row, 5000), 0);
}

TEST(MetricsTest, LargeLogitsDoNotOverflow) {
  const std::vector<float> p = {1e30f, 0, -1e30f};
  const LogitsRow row = ReduceLogits(p.data(), 3);
  EXPECT_EQ(Nll(row, 0), 0);
}

TEST(MetricsTest, ALogitThatIsNotFiniteShows) {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(),
                    std::numeric_limits<float>::infinity()}) {
    const std::vector<float> p = RandomLogits(100, 4, 1);
    std::vector<float> q = p;
    q[57] = bad;
    const LogitsRow row = ReduceLogits(q.data(), 100);
    EXPECT_FALSE(std::isfinite(row.log_sum_exp));
    EXPECT_TRUE(
        std::isnan(KlDivergence(ReduceLogits(p.data(), 100), row, 100)));
  }
}

TEST(MetricsTest, TheEarliestOfEqualLogitsIsTheArgmax) {
  const std::vector<float> p = {0, 3, 3, 1};
  EXPECT_EQ(ReduceLogits(p.data(), 4).argmax, 1);
}

TEST(MetricsTest, QuantilesInterpolateBetweenNeighbours) {
  std::vector<double> values = {4, 1, 3, 2};
  EXPECT_EQ(Quantile(values, 0), 1);
  EXPECT_EQ(Quantile(values, 0.5), 2.5);
  EXPECT_EQ(Quantile(values, 1), 4);
  EXPECT_NEAR(Quantile(values, 0.99), 3.97, 1e-12);  // numpy: 3.97
  std::vector<double> one = {7}, none;
  EXPECT_EQ(Quantile(one, 0.99), 7);
  EXPECT_EQ(Quantile(none, 0.5), 0);
}

TEST(MetricsTest, StandardErrorOfSingleUnitsIsTheTextbookOne) {
  // Values 1, 2, 6: mean 3, sample variance 7, standard error sqrt(7 / 3).
  const ClusteredMean mean = MeanOverClusters({1., 2., 6.}, {1, 1, 1});
  EXPECT_EQ(mean.mean, 3);
  EXPECT_NEAR(mean.standard_error, std::sqrt(7.0 / 3), 1e-12);
  EXPECT_EQ(MeanOverClusters({5.}, {2}).mean, 2.5);
  EXPECT_EQ(MeanOverClusters({5.}, {2}).standard_error, 0);
}

// Two windows, two methods, everything worked out by hand.
std::vector<WindowRecord> HandWindows() {
  std::vector<WindowRecord> windows(2);
  const std::vector<std::vector<std::vector<double>>> nll = {
      {{1, 2}, {2, 2}}, {{3, 2}, {3, 5}}};  // [window][method][token]
  for (int w = 0; w < 2; ++w) {
    windows[w].set_words(w + 1);
    AnswerSpan* answer = windows[w].add_answer();
    answer->set_begin(w);
    answer->set_count(2 - w);
    for (int m = 0; m < 2; ++m) {
      WindowMethod* method = windows[w].add_method();
      for (int t = 0; t < 2; ++t) {
        method->add_nll(nll[w][m][t]);
        method->add_kl(m * (w + 1.0));
        method->add_top1(m == 0 || t == 0);
        method->add_hit(m == 0 || w == 0);
      }
      Ledger* ledger = method->mutable_ledger();
      ledger->set_fp16_bytes(1000);
      ledger->set_bookkeeping(10);
      ledger->mutable_key()->set_codes(m == 0 ? 0 : 80);
      ledger->mutable_key()->set_scales(m == 0 ? 0 : 10);
      ledger->mutable_key()->set_zeros(m == 0 ? 0 : 10);
      ledger->mutable_key()->set_packed_elements(m == 0 ? 0 : 200);
      ledger->mutable_value()->set_window(m == 0 ? 990 : 90);
    }
  }
  return windows;
}

TEST(MetricsTest, QualityMatchesAHandComputation) {
  const std::vector<WindowRecord> windows = HandWindows();
  const Quality full = SummarizeQuality(windows, 0);
  EXPECT_NEAR(full.perplexity(), std::exp(2.0), 1e-12);  // (1 + 2 + 3 + 2) / 4
  EXPECT_EQ(full.kl_mean(), 0);
  EXPECT_EQ(full.top1_agreement(), 1);
  EXPECT_EQ(full.nll_difference(), 0);

  const Quality own = SummarizeQuality(windows, 1);
  EXPECT_EQ(own.tokens(), 4);
  EXPECT_EQ(own.windows(), 2);
  EXPECT_EQ(own.stderr_over(), "windows");
  EXPECT_NEAR(own.perplexity(), std::exp(3.0), 1e-12);  // (2 + 2 + 3 + 5) / 4
  // Window sums 4 and 8 against a mean of 3 a token: residuals -2 and 2.
  EXPECT_NEAR(own.perplexity_stderr(),
              std::exp(3.0) * std::sqrt(2.0 * (4 + 4)) / 4, 1e-12);
  EXPECT_NEAR(own.word_perplexity(), std::exp(12.0 / 3), 1e-9);
  EXPECT_EQ(own.nll_difference(), 1);
  EXPECT_EQ(own.kl_mean(), 1.5);
  // Window sums 2 and 4 against 1.5 a token: residuals -1 and 1.
  EXPECT_NEAR(own.kl_stderr(), std::sqrt(2.0 * (1 + 1)) / 4, 1e-12);
  EXPECT_EQ(own.kl_median(), 1.5);
  EXPECT_NEAR(own.kl_p99(), 2, 1e-12);
  EXPECT_EQ(own.top1_agreement(), 0.5);
}

TEST(MetricsTest, AnAnswerIsRightIfAllItsTokensAre) {
  const std::vector<WindowRecord> windows = HandWindows();
  const AnswerQuality own = SummarizeQuality(windows, 1).answers();
  EXPECT_EQ(own.answers(), 2);
  EXPECT_EQ(own.accuracy(), 0.5);  // right in window 0 only
  EXPECT_EQ(own.accuracy_difference(), -0.5);
  EXPECT_EQ(own.nll(), 4.5);           // 2 + 2 in window 0; 5 in window 1
  EXPECT_EQ(own.nll_difference(), 2);  // (4 - 3 + 5 - 2) / 2
}

TEST(MetricsTest, MemoryCountsEveryByteAndBitsThePackedPart) {
  const std::vector<WindowRecord> windows = HandWindows();
  const Memory full = SummarizeMemory(windows, 0);
  EXPECT_EQ(full.compression(), 1);
  EXPECT_EQ(full.key_effective_bits(), 16);
  const Memory own = SummarizeMemory(windows, 1);
  EXPECT_EQ(own.bytes(), 200);
  EXPECT_EQ(own.compression(), 5);
  EXPECT_EQ(own.key_effective_bits(), 4);  // 100 bytes for 200 elements
  EXPECT_EQ(own.value_effective_bits(), 16);
  EXPECT_EQ(own.key().codes(), 80);
  EXPECT_EQ(own.value().window(), 90);
}

// Half of the layers packed, half of them not: 8 bits and 16 make 12. Tokens
// that a window keeps for a while are neither.
TEST(MetricsTest, EffectiveBitsCountLayersInFullPrecision) {
  WindowRecord window;
  Ledger& ledger = *window.add_method()->mutable_ledger();
  ledger.set_fp16_bytes(800);
  LedgerSideRecord& key = *ledger.mutable_key();
  key.set_codes(100);
  key.set_packed_elements(100);
  key.set_window(2 * 100 + 2 * 30);
  key.set_full_precision_elements(130);
  key.set_unquantized_elements(100);
  EXPECT_EQ(SummarizeMemory({&window, 1}, 0).key_effective_bits(), 12);
  key.set_unquantized_elements(0);
  EXPECT_EQ(SummarizeMemory({&window, 1}, 0).key_effective_bits(), 8);
}

}  // namespace
}  // namespace kvmix
