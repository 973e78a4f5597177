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

LayerScores ProjectionNorms(const float* key, const float* value,
                            const LayerTrace& trace) {
  const int64_t head_size = int64_t{trace.head_dim} * trace.hidden_size;
  LayerScores scores{.key_heads = SquaresOfHeads(key, /*num_rows=*/1,
                                                 trace.num_kv_heads, head_size),
                     .value_heads = SquaresOfHeads(
                         value, /*num_rows=*/1, trace.num_kv_heads, head_size)};
  scores.key = std::sqrt(Sum(scores.key_heads));
  scores.value = std::sqrt(Sum(scores.value_heads));
  for (double& head : scores.key_heads) head = std::sqrt(head);
  for (double& head : scores.value_heads) head = std::sqrt(head);
  return scores;
}

double Sum(const std::vector<double>& x) {
  return std::accumulate(x.begin(), x.end(), 0.0);
}

}  // namespace kvmix
