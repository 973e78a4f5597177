#include "kvmix/allocation/water_level.h"

#include <algorithm>
#include <cmath>

namespace kvmix {

double DistortionCurve::Loss(double bits) const {
  return amplitude * std::exp(-decay * bits);
}

double DistortionCurve::Slope(double bits) const { return decay * Loss(bits); }

std::vector<DistortionCurve> FitCurves(
    const std::vector<std::vector<CurvePoint>>& items) {
  struct Mean {
    double bits = 0, log_loss = 0;
    int count = 0;
  };
  std::vector<Mean> means;
  double covariance = 0, variance = 0;
  for (const std::vector<CurvePoint>& points : items) {
    Mean mean;
    for (const CurvePoint& point : points) {
      if (point.loss <= 0) continue;
      ++mean.count;
      mean.bits += (point.bits - mean.bits) / mean.count;
      mean.log_loss += (std::log(point.loss) - mean.log_loss) / mean.count;
    }
    for (const CurvePoint& point : points) {
      if (point.loss <= 0) continue;
      const double step = point.bits - mean.bits;
      covariance += step * (std::log(point.loss) - mean.log_loss);
      variance += step * step;
    }
    means.push_back(mean);
  }
  double decay = std::log(4.0);
  if (variance > 0 && covariance < 0) decay = -covariance / variance;
  std::vector<DistortionCurve> curves;
  for (const Mean& mean : means) {
    curves.push_back(
        {.amplitude =
             mean.count == 0 ? 0 : std::exp(mean.log_loss + decay * mean.bits),
         .decay = decay});
  }
  return curves;
}

std::vector<double> FillWater(const std::vector<DistortionCurve>& curves,
                              const std::vector<BitRange>& ranges,
                              double sum_bits) {
  std::vector<double> bits(curves.size());
  // Bits at which every item's slope is exp(log_slope); returns their sum.
  const auto fill = [&](double log_slope) {
    double sum = 0;
    for (size_t i = 0; i < curves.size(); ++i) {
      const DistortionCurve& curve = curves[i];
      const double at =
          (std::log(curve.amplitude * curve.decay) - log_slope) / curve.decay;
      // Low if the amplitude is 0.
      bits[i] = std::clamp(at, ranges[i].low, ranges[i].high);
      sum += bits[i];
    }
    return sum;
  };
  // exp(+-1000) lies beyond double's range on both sides.
  double least = -1000, most = 1000;
  if (fill(least) <= sum_bits) return bits;
  for (int i = 0; i < 200; ++i) {
    const double middle = (least + most) / 2;
    (fill(middle) > sum_bits ? least : most) = middle;
  }
  fill(most);
  return bits;
}

}  // namespace kvmix
