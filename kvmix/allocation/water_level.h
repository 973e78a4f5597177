// Reverse water-filling: how to spend bits on sources whose distortion falls
// exponentially with them (Cover and Thomas, Elements of Information Theory,
// section 10.3.3; for KV caches RateQuant, arXiv 2605.06675).
#pragma once

#include <vector>

namespace kvmix {

// Loss of an item stored at b bits for each element: amplitude * exp(-decay b).
struct DistortionCurve {
  double amplitude = 0;  // at least 0
  double decay = 1;      // positive; ln 4 if an additional bit quarters it
  double Loss(double bits) const;
  // -dLoss/dbits
  double Slope(double bits) const;
};

// Of points (bits, loss) with positive losses: least squares on log loss with a
// decay that the items share and an amplitude of each item's own. An item
// without a positive loss gets amplitude 0. With no two points of any item, or
// a loss that does not fall, the decay is ln 4, what theory says of fine codes.
struct CurvePoint {
  double bits = 0;
  double loss = 0;
};
std::vector<DistortionCurve> FitCurves(
    const std::vector<std::vector<CurvePoint>>& items);

// Bits that an item can take; low <= high.
struct BitRange {
  double low = 0;
  double high = 16;
};

// Bits of each item, within its range, that add up to `sum_bits` and have the
// least sum of losses: items strictly inside of their ranges have one slope,
// those at `low` a smaller and those at `high` a greater one. The sum is taken
// between that of all lows and that of all highs; it may fall short of sum_bits
// by rounding, but never exceeds it.
std::vector<double> FillWater(const std::vector<DistortionCurve>& curves,
                              const std::vector<BitRange>& ranges,
                              double sum_bits);

}  // namespace kvmix
