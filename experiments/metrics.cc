#include "experiments/metrics.h"

#include <algorithm>
#include <cmath>
#include <eigen3/Eigen/Core>
#include <limits>

#include "kvmix/base/check.h"

namespace kvmix {
namespace {

using FloatArray = Eigen::Array<float, Eigen::Dynamic, 1>;
using ConstRow = Eigen::Map<const FloatArray>;

// Rows are summed block by block, so that the temporary stays in the cache.
constexpr int64_t kBlock = 4096;

template <typename Body>  // body(first, count) gives a double
double SumOverBlocks(int64_t n, Body body) {
  double sum = 0;
  for (int64_t i = 0; i < n; i += kBlock)
    sum += body(i, std::min(kBlock, n - i));
  return sum;
}

struct Sums {
  double sum = 0;
  int64_t count = 0;
};

// Means of one quantity with its windows as clusters; with a single window, its
// units are taken as the clusters.
class Series {
 public:
  void Add(double value) {
    values_.push_back(value);
    windows_.back().sum += value;
    ++windows_.back().count;
  }
  void StartWindow() { windows_.emplace_back(); }
  bool over_windows() const { return windows_.size() > 1; }
  double sum() const {
    double sum = 0;
    for (const Sums& w : windows_) sum += w.sum;
    return sum;
  }
  ClusteredMean Mean() const {
    if (!over_windows()) {
      const std::vector<int64_t> ones(values_.size(), 1);
      return MeanOverClusters(values_, ones);
    }
    std::vector<double> sums;
    std::vector<int64_t> counts;
    for (const Sums& w : windows_) {
      sums.push_back(w.sum);
      counts.push_back(w.count);
    }
    return MeanOverClusters(sums, counts);
  }

 private:
  std::vector<double> values_;
  std::vector<Sums> windows_;
};

struct AnswerScore {
  double nll = 0;
  bool right = true;
};

AnswerScore ScoreAnswer(const WindowMethod& scores, const AnswerSpan& answer) {
  AnswerScore score;
  for (int i = answer.begin(); i < answer.begin() + answer.count(); ++i) {
    score.nll += scores.nll(i);
    score.right = score.right && scores.hit(i);
  }
  return score;
}

AnswerQuality SummarizeAnswers(absl::Span<const WindowRecord> windows,
                               int method) {
  AnswerQuality quality;
  Series right, right_difference, nll, nll_difference;
  for (const WindowRecord& window : windows) {
    for (Series* s : {&right, &right_difference, &nll, &nll_difference})
      s->StartWindow();
    for (const AnswerSpan& answer : window.answer()) {
      const AnswerScore own = ScoreAnswer(window.method(method), answer);
      const AnswerScore full = ScoreAnswer(window.method(0), answer);
      right.Add(own.right);
      right_difference.Add(static_cast<double>(own.right) - full.right);
      nll.Add(own.nll);
      nll_difference.Add(own.nll - full.nll);
      quality.set_answers(quality.answers() + 1);
    }
  }
  if (quality.answers() == 0) return quality;
  quality.set_accuracy(right.Mean().mean);
  quality.set_accuracy_stderr(right.Mean().standard_error);
  quality.set_accuracy_difference(right_difference.Mean().mean);
  quality.set_accuracy_difference_stderr(
      right_difference.Mean().standard_error);
  quality.set_nll(nll.Mean().mean);
  quality.set_nll_stderr(nll.Mean().standard_error);
  quality.set_nll_difference(nll_difference.Mean().mean);
  quality.set_nll_difference_stderr(nll_difference.Mean().standard_error);
  return quality;
}

void AddSide(const LedgerSideRecord& side, double weight, SideBytes& mean) {
  mean.set_codes(mean.codes() + weight * side.codes());
  mean.set_scales(mean.scales() + weight * side.scales());
  mean.set_zeros(mean.zeros() + weight * side.zeros());
  mean.set_side_data(mean.side_data() + weight * side.side_data());
  mean.set_sinks(mean.sinks() + weight * side.sinks());
  mean.set_window(mean.window() + weight * side.window());
  mean.set_slack(mean.slack() + weight * side.slack());
}

int64_t PackedBytes(const LedgerSideRecord& side) {
  return side.codes() + side.scales() + side.zeros() + side.side_data();
}

int64_t TotalBytes(const LedgerSideRecord& side) {
  return PackedBytes(side) + side.sinks() + side.window() + side.slack();
}

// Of one side over windows: its packed part and what is in 16-bit formats, or
// all if there is neither.
struct ElementBits {
  void Add(const LedgerSideRecord& side) {
    packed_bytes += PackedBytes(side);
    packed_elements += side.packed_elements();
    full_bytes += side.sinks() + side.window();
    full_elements += side.full_precision_elements();
    unquantized += side.unquantized_elements();
  }
  double Effective() const {
    const double full =
        full_elements > 0 ? 8.0 * full_bytes / full_elements : 16;
    if (packed_elements == 0) return full;
    return (8.0 * packed_bytes + full * unquantized) /
           (packed_elements + unquantized);
  }
  int64_t packed_bytes = 0, packed_elements = 0;
  int64_t full_bytes = 0, full_elements = 0, unquantized = 0;
};

}  // namespace

LogitsRow ReduceLogits(const float* logits, int64_t vocab_size) {
  ConstRow row(logits, vocab_size);
  LogitsRow reduced{.logits = logits};
  if (!row.allFinite()) {
    reduced.log_sum_exp = std::numeric_limits<double>::quiet_NaN();
    return reduced;
  }
  Eigen::Index argmax = 0;
  const float max = row.maxCoeff(&argmax);
  reduced.argmax = static_cast<int32_t>(argmax);
  FloatArray terms(std::min(kBlock, vocab_size));
  const double sum = SumOverBlocks(vocab_size, [&](int64_t i, int64_t n) {
    terms.head(n) = (row.segment(i, n) - max).exp();
    return terms.head(n).cast<double>().sum();
  });
  reduced.log_sum_exp = max + std::log(sum);
  return reduced;
}

double Nll(const LogitsRow& row, int32_t token) {
  return row.log_sum_exp - row.logits[token];
}

double KlDivergence(const LogitsRow& p, const LogitsRow& q,
                    int64_t vocab_size) {
  ConstRow p_row(p.logits, vocab_size), q_row(q.logits, vocab_size);
  const float p_shift = static_cast<float>(p.log_sum_exp);
  FloatArray terms(std::min(kBlock, vocab_size));
  const double mean_difference =
      SumOverBlocks(vocab_size, [&](int64_t i, int64_t n) {
        terms.head(n) = (p_row.segment(i, n) - p_shift).exp() *
                        (p_row.segment(i, n) - q_row.segment(i, n));
        return terms.head(n).cast<double>().sum();
      });
  const double divergence = mean_difference - p.log_sum_exp + q.log_sum_exp;
  return divergence < 0 ? 0 : divergence;  // NaN stays
}

double Quantile(std::vector<double>& values, double q) {
  if (values.empty()) return 0;
  const double position = q * (values.size() - 1);
  const size_t below = static_cast<size_t>(position);
  std::nth_element(values.begin(), values.begin() + below, values.end());
  const double low = values[below];
  if (below + 1 == values.size()) return low;
  const double high =
      *std::min_element(values.begin() + below + 1, values.end());
  return low + (position - below) * (high - low);
}

ClusteredMean MeanOverClusters(absl::Span<const double> sums,
                               absl::Span<const int64_t> counts) {
  KVMIX_CHECK(sums.size() == counts.size());
  double sum = 0;
  int64_t count = 0;
  for (size_t i = 0; i < sums.size(); ++i) {
    sum += sums[i];
    count += counts[i];
  }
  ClusteredMean result;
  if (count == 0) return result;
  result.mean = sum / count;
  if (sums.size() < 2) return result;
  double squares = 0;
  for (size_t i = 0; i < sums.size(); ++i) {
    const double residual = sums[i] - result.mean * counts[i];
    squares += residual * residual;
  }
  const double n = static_cast<double>(sums.size());
  result.standard_error = std::sqrt(n / (n - 1) * squares) / count;
  return result;
}

Quality SummarizeQuality(absl::Span<const WindowRecord> windows, int method) {
  Quality quality;
  Series nll, difference, divergence;
  std::vector<double> kl;
  int64_t agreements = 0;
  for (const WindowRecord& window : windows) {
    const WindowMethod& own = window.method(method);
    nll.StartWindow();
    difference.StartWindow();
    divergence.StartWindow();
    for (int i = 0; i < own.nll_size(); ++i) {
      nll.Add(own.nll(i));
      difference.Add(own.nll(i) - window.method(0).nll(i));
      divergence.Add(own.kl(i));
      agreements += own.top1(i);
    }
    kl.insert(kl.end(), own.kl().begin(), own.kl().end());
    quality.set_words(quality.words() + window.words());
  }
  quality.set_tokens(static_cast<int64_t>(kl.size()));
  quality.set_windows(static_cast<int>(windows.size()));
  if (kl.empty()) return quality;
  const ClusteredMean mean = nll.Mean();
  quality.set_nll(mean.mean);
  quality.set_perplexity(std::exp(mean.mean));
  // The error of exp(m) is exp(m) times that of m, to first order.
  quality.set_perplexity_stderr(quality.perplexity() * mean.standard_error);
  quality.set_stderr_over(nll.over_windows() ? "windows" : "tokens");
  if (quality.words() > 0)
    quality.set_word_perplexity(std::exp(nll.sum() / quality.words()));
  quality.set_nll_difference(difference.Mean().mean);
  quality.set_nll_difference_stderr(difference.Mean().standard_error);
  quality.set_kl_mean(divergence.Mean().mean);
  quality.set_kl_stderr(divergence.Mean().standard_error);
  quality.set_kl_median(Quantile(kl, 0.5));
  quality.set_kl_p99(Quantile(kl, 0.99));
  quality.set_top1_agreement(static_cast<double>(agreements) / kl.size());
  *quality.mutable_answers() = SummarizeAnswers(windows, method);
  return quality;
}

Memory SummarizeMemory(absl::Span<const WindowRecord> windows, int method) {
  Memory memory;
  int64_t bytes = 0, fp16_bytes = 0;
  ElementBits key, value;
  for (const WindowRecord& window : windows) {
    const Ledger& ledger = window.method(method).ledger();
    const double weight = 1.0 / windows.size();
    bytes += TotalBytes(ledger.key()) + TotalBytes(ledger.value()) +
             ledger.bookkeeping();
    fp16_bytes += ledger.fp16_bytes();
    key.Add(ledger.key());
    value.Add(ledger.value());
    AddSide(ledger.key(), weight, *memory.mutable_key());
    AddSide(ledger.value(), weight, *memory.mutable_value());
    memory.set_bookkeeping(memory.bookkeeping() +
                           weight * ledger.bookkeeping());
  }
  if (bytes == 0) return memory;
  memory.set_bytes(static_cast<double>(bytes) / windows.size());
  memory.set_fp16_bytes(static_cast<double>(fp16_bytes) / windows.size());
  memory.set_compression(static_cast<double>(fp16_bytes) / bytes);
  memory.set_key_effective_bits(key.Effective());
  memory.set_value_effective_bits(value.Effective());
  return memory;
}

}  // namespace kvmix
