#include "experiments/compare/rank_correlation.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>

#include "kvmix/base/check.h"

namespace kvmix {
namespace {

// Ranks from 1 on; equal values share the mean of theirs.
std::vector<double> Ranks(const std::vector<double>& x) {
  std::vector<size_t> order(x.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return x[a] < x[b]; });
  std::vector<double> ranks(x.size());
  for (size_t first = 0; first < x.size();) {
    size_t end = first;
    while (end < x.size() && x[order[end]] == x[order[first]]) ++end;
    const double rank = 0.5 * static_cast<double>(first + 1 + end);
    for (; first < end; ++first) ranks[order[first]] = rank;
  }
  return ranks;
}

int Sign(double x) { return (x > 0) - (x < 0); }

}  // namespace

double Spearman(const std::vector<double>& a, const std::vector<double>& b) {
  KVMIX_CHECK(a.size() == b.size());
  const std::vector<double> ranks_a = Ranks(a), ranks_b = Ranks(b);
  const double mean = 0.5 * static_cast<double>(a.size() + 1);
  double covariance = 0, variance_a = 0, variance_b = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    covariance += (ranks_a[i] - mean) * (ranks_b[i] - mean);
    variance_a += (ranks_a[i] - mean) * (ranks_a[i] - mean);
    variance_b += (ranks_b[i] - mean) * (ranks_b[i] - mean);
  }
  if (variance_a == 0 || variance_b == 0) return 0;
  return covariance / std::sqrt(variance_a * variance_b);
}

double Kendall(const std::vector<double>& a, const std::vector<double>& b) {
  KVMIX_CHECK(a.size() == b.size());
  int64_t sum = 0, pairs_a = 0, pairs_b = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      const int sign_a = Sign(a[i] - a[j]), sign_b = Sign(b[i] - b[j]);
      sum += sign_a * sign_b;
      pairs_a += sign_a != 0;
      pairs_b += sign_b != 0;
    }
  }
  if (pairs_a == 0 || pairs_b == 0) return 0;
  return static_cast<double>(sum) /
         std::sqrt(static_cast<double>(pairs_a) * static_cast<double>(pairs_b));
}

}  // namespace kvmix
