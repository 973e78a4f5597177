// How the time of a decode step grows with the cache: a line through the
// depths of a bench report, and how well it fits.
#pragma once

#include <string>
#include <vector>

#include "experiments/bench/bench.h"

namespace kvmix {

// seconds = seconds_at_zero + seconds_per_token * depth, by least squares.
struct DepthGrowth {
  std::string method;
  int64_t batch = 0;
  int threads = 0;
  double seconds_at_zero = 0;    // of a step of the whole batch
  double seconds_per_token = 0;  // of each sequence's cache
  // 1 - residual over total sum of squares; 1: the times lie on the line.
  double r_squared = 0;
};

// For every method, batch and number of threads that decoded at three or more
// depths, in the order of their first rows; medians are fitted.
std::vector<DepthGrowth> DepthGrowthOf(const BenchReport& report);

}  // namespace kvmix
