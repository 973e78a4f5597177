#include "quant/normal_codebook.h"

#include <array>
#include <cmath>
#include <limits>

#include "kvmix/base/check.h"

namespace kvmix {
namespace {

constexpr int kMaxBits = 8;
constexpr double kInverseSqrt2Pi = 0.3989422804014327;

double Density(double x) { return kInverseSqrt2Pi * std::exp(-x * x / 2); }
double Mass(double a, double b) {
  return (std::erfc(a / M_SQRT2) - std::erfc(b / M_SQRT2)) / 2;
}

// Positive levels, ascending: by symmetry one cell ends at 0.
std::vector<double> PositiveLevels(int count) {
  std::vector<double> levels(count);
  // Cells of equal mass of a density to the power 1/3, which is where the best
  // levels lie when there are many: a normal of variance 3.
  for (int i = 0; i < count; ++i) {
    const double mass = (i + 0.5) / count;
    double low = 0, high = 10;
    for (int step = 0; step < 60; ++step) {
      const double middle = (low + high) / 2;
      (std::erf(middle / std::sqrt(6.0)) < mass ? low : high) = middle;
    }
    levels[i] = low;
  }
  for (double moved = 1; moved > 1e-9;) {
    moved = 0;
    double begin = 0;
    for (int i = 0; i < count; ++i) {
      const bool last = i + 1 == count;
      const double end = last ? std::numeric_limits<double>::infinity()
                              : (levels[i] + levels[i + 1]) / 2;
      const double mean = (Density(begin) - Density(end)) / Mass(begin, end);
      moved = std::fmax(moved, std::fabs(mean - levels[i]));
      levels[i] = mean;
      begin = end;
    }
  }
  return levels;
}

std::vector<float> Codebook(int bits) {
  const std::vector<double> positive = PositiveLevels(1 << (bits - 1));
  std::vector<float> levels;
  for (auto it = positive.rbegin(); it != positive.rend(); ++it)
    levels.push_back(static_cast<float>(-*it));
  for (const double level : positive)
    levels.push_back(static_cast<float>(level));
  return levels;
}

}  // namespace

const std::vector<float>& NormalCodebook(int bits) {
  KVMIX_CHECK(bits >= 1 && bits <= kMaxBits);
  static const auto* const codebooks = [] {
    auto* all = new std::array<std::vector<float>, kMaxBits + 1>;
    for (int b = 1; b <= kMaxBits; ++b) (*all)[b] = Codebook(b);
    return all;
  }();
  return (*codebooks)[bits];
}

// Levels are means of their cells, so the error is E x^2 - E level^2.
double NormalCodebookError(int bits) {
  const std::vector<float>& levels = NormalCodebook(bits);
  double error = 1, begin = 0;
  for (size_t i = levels.size() / 2; i < levels.size(); ++i) {
    const double end = i + 1 == levels.size()
                           ? std::numeric_limits<double>::infinity()
                           : (double{levels[i]} + levels[i + 1]) / 2;
    error -= 2 * Mass(begin, end) * levels[i] * levels[i];
    begin = end;
  }
  return error;
}

}  // namespace kvmix
