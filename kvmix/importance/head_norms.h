// Norms of what a LayerTrace shows, for a layer and for each KV head.
//
// T = tokens, G = KV heads, D = head_dim, C = hidden size.
#pragma once

#include <cstdint>
#include <vector>

#include "kvmix/importance/score_accumulator.h"
#include "kvmix/layer_trace.h"

namespace kvmix {

// Sums of squares of each KV head, in double: a projection has up to 10^7
// elements. x: [num_rows, G, D] states, or with num_rows = 1 and D = D * C a
// projection.
std::vector<double> SquaresOfHeads(const float* x, int64_t num_rows,
                                   int num_heads, int64_t head_size);

// Mean over rows of the L2 norm of each head's row: x [num_rows, G, D].
std::vector<double> MeanNormsOfHeads(const float* x, int64_t num_rows,
                                     int num_heads, int head_dim);

// Frobenius norms of W_k and W_v, or of their gradients, and of each KV head's
// rows: key, value [G * D, C], of the shape of `trace`.
LayerScores ProjectionNorms(const float* key, const float* value,
                            const LayerTrace& trace);

double Sum(const std::vector<double>& x);

}  // namespace kvmix
