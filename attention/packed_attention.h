// Products of a few query rows with tokens of a KvStream, each page by the
// kernel for what it holds. Formats without one are read into floats first.
#pragma once

#include <cstdint>
#include <string>

#include "attention/attention_arithmetic.h"
#include "attention/kv_stream.h"
#include "attention/packed_kernels.h"

namespace kvmix {

// Tokens of a tile: one step of the softmax.
inline constexpr int kPackedTile = kMaxRunSlices * kSliceTokens;
// Floats from row to row of a tile's scores: kernels write whole slices.
inline constexpr int kPackedStride = kPackedTile + 2 * kSliceTokens;

// The end of a tile that begins at token `first`: as many whole slices and
// blocks of keys as fit.
int64_t PackedTileEnd(const KvStream& keys, int64_t first, int64_t limit);

// Rows of head_dim floats.
struct Rows {
  float* data = nullptr;
  int count = 0;
  int head_dim = 0;
};

// scores [rows, kPackedStride], column t = queries * key `first` + t, for
// tokens [first, last). Further columns may be written, too.
void ScoreTokens(const KvStream& keys, AttentionArithmetic arithmetic,
                 int64_t first, int64_t last, const Rows& queries,
                 float* scores);
// out += weights [rows, kPackedStride] * values of tokens [first, last).
void AccumulateTokens(const KvStream& values, AttentionArithmetic arithmetic,
                      int64_t first, int64_t last, const float* weights,
                      const Rows& out);

// Prefetches token `first` and what is read before prefetches of kernels
// arrive.
void PrefetchTokens(const KvStream& stream, int64_t first, int head_dim);

// What computes with blocks of a codec, for the record of a run: "int8",
// "float", or "float, decoded first" where there is no kernel. A chunk of many
// queries always decodes first.
std::string PackedKernelName(const BlockCodec& codec,
                             AttentionArithmetic arithmetic);

}  // namespace kvmix
