#include "quant/share_histogram.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kvmix/base/check.h"

namespace kvmix {
namespace {

// Sums over the first i bins, [0, n].
struct Prefix {
  double weight = 0, sum = 0, squares = 0;
};

// Squared error of bins [begin, end) around their mean.
double RunError(const std::vector<Prefix>& prefix, int begin, int end) {
  const double weight = prefix[end].weight - prefix[begin].weight;
  const double sum = prefix[end].sum - prefix[begin].sum;
  return std::max(
      0.0, prefix[end].squares - prefix[begin].squares - sum * sum / weight);
}

// One more run: best[j] = min over i of before[i] + RunError(i, j), and the i
// that it is. The best i never falls as j grows, so halves of the j bound each
// other.
struct NextRun {
  const std::vector<Prefix>& prefix;
  const std::vector<double>& before;
  std::vector<double>& best;
  std::vector<int>& cut;

  void Solve(int first, int last, int low, int high) const {
    if (first > last) return;
    const int j = first + (last - first) / 2;
    best[j] = std::numeric_limits<double>::infinity();
    for (int i = low; i <= std::min(high, j - 1); ++i) {
      const double error = before[i] + RunError(prefix, i, j);
      if (error < best[j]) {
        best[j] = error;
        cut[j] = i;
      }
    }
    const int middle = std::isinf(best[j]) ? low : cut[j];
    Solve(first, j - 1, low, middle);
    Solve(j + 1, last, middle, high);
  }
};

}  // namespace

std::vector<float> EquallySpacedLevels(int bits) {
  std::vector<float> levels(size_t{1} << bits);
  for (size_t i = 0; i < levels.size(); ++i)
    levels[i] = static_cast<float>(i) / static_cast<float>(levels.size() - 1);
  return levels;
}

ShareHistogram::ShareHistogram(int bins) : bins_(bins) {
  KVMIX_CHECK(bins > 0);
}

void ShareHistogram::Add(double share, double weight) {
  const int last = static_cast<int>(bins_.size()) - 1;
  const double at = std::clamp(share, 0.0, 1.0);
  Bin& bin = bins_[std::min(last, static_cast<int>(at * (last + 1)))];
  bin.weight += weight;
  bin.sum += weight * at;
  bin.squares += weight * at * at;
}

absl::StatusOr<std::vector<float>> ShareHistogram::OptimalLevels(
    int count) const {
  std::vector<Prefix> prefix(1);
  for (const Bin& bin : bins_) {
    if (bin.weight == 0) continue;
    const Prefix& last = prefix.back();
    prefix.push_back({last.weight + bin.weight, last.sum + bin.sum,
                      last.squares + bin.squares});
  }
  const int n = static_cast<int>(prefix.size()) - 1;
  if (n < count) {
    return absl::FailedPreconditionError(
        absl::StrCat(count, " levels need as many different shares, but ", n,
                     " were seen; show more prompts or ask for fewer bits"));
  }
  // cuts[k][j]: where the last of k + 1 runs over the first j bins begins.
  std::vector<std::vector<int>> cuts;
  std::vector<double> best(n + 1, std::numeric_limits<double>::infinity());
  best[0] = 0;
  for (int k = 0; k < count; ++k) {
    const std::vector<double> before = best;
    cuts.emplace_back(n + 1, 0);
    best[0] = std::numeric_limits<double>::infinity();
    NextRun{prefix, before, best, cuts.back()}.Solve(1, n, 0, n - 1);
  }
  std::vector<float> levels(count);
  for (int k = count - 1, end = n; k >= 0; --k) {
    const int begin = cuts[k][end];
    levels[k] = static_cast<float>((prefix[end].sum - prefix[begin].sum) /
                                   (prefix[end].weight - prefix[begin].weight));
    end = begin;
  }
  return levels;
}

double ShareHistogram::Error(absl::Span<const float> levels) const {
  double error = 0, weight = 0;
  for (const Bin& bin : bins_) {
    if (bin.weight == 0) continue;
    const double mean = bin.sum / bin.weight;
    const double level = *std::min_element(
        levels.begin(), levels.end(), [mean](float a, float b) {
          return std::fabs(a - mean) < std::fabs(b - mean);
        });
    error += bin.squares - 2 * level * bin.sum + level * level * bin.weight;
    weight += bin.weight;
  }
  return weight == 0 ? 0 : error / weight;
}

}  // namespace kvmix
