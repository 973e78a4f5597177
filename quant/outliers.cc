#include "quant/outliers.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace kvmix {

int OutlierCount(double fraction, int elements) {
  return std::max(1, static_cast<int>(std::lround(fraction * elements)));
}

Outliers FarthestFromMean(const float* x, int tokens, int head_dim, int count) {
  const int elements = tokens * head_dim;
  Outliers found;
  std::vector<double> sums(tokens > 1 ? head_dim : 1);
  for (int e = 0; e < elements; ++e) sums[e % sums.size()] += x[e];
  for (const double sum : sums) {
    found.means.push_back(
        static_cast<float>(sum * static_cast<double>(sums.size()) / elements));
  }
  std::vector<float> distance(elements);
  for (int e = 0; e < elements; ++e) {
    const float d = std::fabs(x[e] - found.MeanOf(e));
    distance[e] = std::isnan(d) ? 0 : d;
  }
  found.places.resize(elements);
  std::iota(found.places.begin(), found.places.end(), 0);
  std::partial_sort(
      found.places.begin(), found.places.begin() + count, found.places.end(),
      [&](int a, int b) {
        return distance[a] != distance[b] ? distance[a] > distance[b] : a < b;
      });
  found.places.resize(count);
  return found;
}

}  // namespace kvmix
