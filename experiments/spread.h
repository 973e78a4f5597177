// A repeated measurement in three numbers: the middle one counts, the others
// tell how much it may be trusted.
#pragma once

#include <vector>

namespace kvmix {

struct Spread {
  double median = 0;
  double low = 0;
  double high = 0;
};

// Of at least one value; of an even number, the median is the mean of the two
// in the middle.
Spread SpreadOf(std::vector<double> values);

}  // namespace kvmix
