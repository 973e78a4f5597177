// Attention weights of one query head, from what a LayerTrace shows.
#pragma once

#include <eigen3/Eigen/Core>

#include "kvmix/layer_trace.h"

namespace kvmix {

using RowMatrix =
    Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using HeadRows =
    Eigen::Map<const RowMatrix, Eigen::Unaligned, Eigen::OuterStride<>>;

// [T, D]: head `head` of states [T, num_heads, D].
HeadRows RowsOfHead(const float* states, int64_t num_tokens, int num_heads,
                    int head_dim, int head);

// First token that token t attends to.
int64_t FirstVisible(const LayerTrace& trace, int64_t t);

// [T, T]: row t is softmax over the tokens that query t of head `head` sees, 0
// elsewhere. keys [T, G, D] take the place of trace.key_states.
RowMatrix CausalWeights(const LayerTrace& trace, const float* keys, int head);

// KV head that query head `head` reads.
int KvHeadOf(const LayerTrace& trace, int head);

}  // namespace kvmix
