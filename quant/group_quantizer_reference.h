// Group quantization by the textbook, in double. Shares nothing with the fast
// code, the rounding of scale and zero point to half included. testonly.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace kvmix::testing {

// The half nearest to x, ties to even, by arithmetic on doubles.
inline double NearestHalf(double x) {
  if (x == 0) return 0;
  // The last bit of a half in x's binade; subnormal halves end at 2^-24.
  const int exponent = std::max(std::ilogb(x), -14);
  const double unit = std::ldexp(1.0, exponent - 10);
  return std::nearbyint(x / unit) * unit;
}

struct ReferenceGroup {
  double scale = 0, zero = 0;
  std::vector<double> steps;  // (x - zero) / scale, before rounding
  std::vector<double> codes;
  std::vector<double> x_hat;
};

// last_levels, last_factor: what sets the group's last code apart (KVmix's
// eleventh code has 3 levels, and a scale of last_factor times the others').
inline ReferenceGroup QuantizeGroup(const std::vector<double>& x, int bits,
                                    double last_levels = -1,
                                    double last_factor = 1) {
  const double levels = std::pow(2.0, bits) - 1;
  const auto [min, max] = std::minmax_element(x.begin(), x.end());
  ReferenceGroup group;
  group.zero = NearestHalf(*min);
  group.scale = NearestHalf((*max - *min) / levels);
  for (size_t i = 0; i < x.size(); ++i) {
    const bool last = i + 1 == x.size() && last_levels >= 0;
    const double scale = group.scale * (last ? last_factor : 1);
    const double step = scale == 0 ? 0 : (x[i] - group.zero) / scale;
    const double code =
        std::clamp(std::nearbyint(step), 0.0, last ? last_levels : levels);
    group.steps.push_back(step);
    group.codes.push_back(code);
    group.x_hat.push_back(code * scale + group.zero);
  }
  return group;
}

}  // namespace kvmix::testing
