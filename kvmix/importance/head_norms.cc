#include "kvmix/importance/head_norms.h"

#include <cmath>
#include <numeric>

namespace kvmix {
namespace {

double Squares(const float* x, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(x[i]) * x[i];
  return sum;
}

}  // namespace

std::vector<double> SquaresOfHeads(const float* x, int64_t num_rows,
                                   int num_heads, int64_t head_size) {
  std::vector<double> squares(num_heads);
  for (int64_t row = 0; row < num_rows; ++row) {
    for (double& head : squares) {
      head += Squares(x, head_size);
      x += head_size;
    }
  }
  return squares;
}

std::vector<double> MeanNormsOfHeads(const float* x, int64_t num_rows,
                                     int num_heads, int head_dim) {
  std::vector<double> norms(num_heads);
  for (int64_t row = 0; row < num_rows; ++row) {
    for (double& head : norms) {
      head += std::sqrt(Squares(x, head_dim)) / static_cast<double>(num_rows);
      x += head_dim;
    }
  }
  return norms;
}

double Sum(const std::vector<double>& x) {
  return std::accumulate(x.begin(), x.end(), 0.0);
}

}  // namespace kvmix
