#include "experiments/bench/bench_growth.h"

#include <algorithm>

namespace kvmix {
namespace {

struct Series {
  DepthGrowth growth;
  std::vector<double> depths, seconds;
};

void Fit(const Series& series, DepthGrowth& growth) {
  const double n = static_cast<double>(series.depths.size());
  double mean_x = 0, mean_y = 0;
  for (size_t i = 0; i < series.depths.size(); ++i) {
    mean_x += series.depths[i] / n;
    mean_y += series.seconds[i] / n;
  }
  double xx = 0, xy = 0, yy = 0;
  for (size_t i = 0; i < series.depths.size(); ++i) {
    const double dx = series.depths[i] - mean_x;
    const double dy = series.seconds[i] - mean_y;
    xx += dx * dx;
    xy += dx * dy;
    yy += dy * dy;
  }
  growth.seconds_per_token = xy / xx;
  growth.seconds_at_zero = mean_y - growth.seconds_per_token * mean_x;
  growth.r_squared = yy == 0 ? 1 : xy * xy / (xx * yy);
}

bool HasThreeDepths(const Series& series) {
  std::vector<double> depths = series.depths;
  std::sort(depths.begin(), depths.end());
  return std::unique(depths.begin(), depths.end()) - depths.begin() >= 3;
}

}  // namespace

std::vector<DepthGrowth> DepthGrowthOf(const BenchReport& report) {
  std::vector<Series> all;
  for (const BenchRow& row : report.rows) {
    if (row.decode.median == 0) continue;
    auto series = std::find_if(all.begin(), all.end(), [&](const Series& s) {
      return s.growth.method == row.method && s.growth.batch == row.batch &&
             s.growth.threads == row.threads;
    });
    if (series == all.end()) {
      series = all.emplace(all.end());
      series->growth.method = row.method;
      series->growth.batch = row.batch;
      series->growth.threads = row.threads;
    }
    series->depths.push_back(static_cast<double>(row.depth));
    series->seconds.push_back(static_cast<double>(row.batch) /
                              row.decode.median);
  }
  std::vector<DepthGrowth> growths;
  for (Series& series : all) {
    if (!HasThreeDepths(series)) continue;
    Fit(series, series.growth);
    growths.push_back(series.growth);
  }
  return growths;
}

}  // namespace kvmix
