#include "experiments/spread.h"

#include <algorithm>

#include "kvmix/base/check.h"

namespace kvmix {

Spread SpreadOf(std::vector<double> values) {
  KVMIX_CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  const double median = values.size() % 2 == 1
                            ? values[middle]
                            : (values[middle - 1] + values[middle]) / 2;
  return {.median = median, .low = values.front(), .high = values.back()};
}

}  // namespace kvmix
