// Which elements of a granule are its outliers, for "sparse_outliers" and for
// whoever must know what it leaves to the quantizer inside.
#pragma once

#include <vector>

namespace kvmix {

struct Outliers {
  std::vector<int> places;  // t * D + d, the farthest first
  // Of each channel where there are several tokens, [D], else of the token,
  // [1].
  std::vector<float> means;

  float MeanOf(int place) const { return means[place % means.size()]; }
};

// The `count` elements of x [tokens, D], tokens that are written together, that
// are farthest from their mean. Of two equally far ones the earlier; what is
// not a number is not far.
Outliers FarthestFromMean(const float* x, int tokens, int head_dim, int count);

// How many a share of them is: at least one.
int OutlierCount(double fraction, int elements);

}  // namespace kvmix
