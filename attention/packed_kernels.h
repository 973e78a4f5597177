// Attention of a few query rows over keys and values as they lie in the cache:
// codes go from memory into the product, and no block is decoded first.
//
// Rows are queries that share a KV head; D = head_dim. With kInt8, queries and
// attention weights, each times the scales of what they meet, are rounded to 8
// bits and multiplied with the codes in integers; what rounding took is given
// back at the codes' middle. Formats and layouts: quant/lane_block.h,
// kv_stream.h.
#pragma once

#include <cstdint>

#include "attention/attention_arithmetic.h"
#include "attention/full_precision.h"
#include "quant/lane_block.h"

namespace kvmix {

// Tokens that a kernel takes at a time.
inline constexpr int kSliceTokens = 32;
// No call may have more slices, or more rows. What a call does once, as finding
// the largest scales, is worth many slices.
inline constexpr int kMaxRunSlices = 16;
inline constexpr int kMaxPackedRows = 8;

// Fetches a line into the second-level cache. The first one has room for far
// fewer lines under way than memory's latency takes: kernels that prefetched
// into it ran at half the speed.
// Inlined always: GCC drops calls to functions that do nothing else.
[[gnu::always_inline]] inline void PrefetchLine(const void* p) {
  __builtin_prefetch(p, /*write=*/0, /*locality=*/2);
}
// Those of [p, p + bytes).
[[gnu::always_inline]] inline void PrefetchLines(const void* p, int64_t bytes) {
  const auto* line = static_cast<const char*>(p);
  for (int64_t i = 0; i < bytes; i += 64) PrefetchLine(line + i);
}

// kSliceTokens tokens of a block.
struct BlockSlice {
  const uint8_t* block;
  int index;      // of the block's slices
  int64_t ahead;  // prefetch this many bytes further on; 0: do not
};
// Slices whose tokens follow one another, of blocks in one format.
struct BlockRun {
  int num_slices = 0;
  BlockSlice slices[kMaxRunSlices];  // set up to num_slices
};

// scores [rows, stride], columns [0, num_slices * 32) = queries [rows, D] *
// keys.
void ScoreBlocks(const LaneBlock& format, AttentionArithmetic arithmetic,
                 const BlockRun& run, const float* queries, int rows,
                 float* scores, int64_t stride);
// Columns [0, 11), of one block.
void ScoreElevens(const ElevenBlock& format, const uint8_t* block,
                  int64_t ahead, const float* queries, int rows, float* scores,
                  int64_t stride);
// Columns [0, 32), of a page of keys [D, 32] in full precision.
void ScorePage(NumberType type, const void* page, int head_dim, int64_t ahead,
               const float* queries, int rows, float* scores, int64_t stride);

// out [rows, D] += weights [rows, stride], columns [0, num_slices * 32), *
// values.
void AccumulateBlocks(const LaneBlock& format, AttentionArithmetic arithmetic,
                      const BlockRun& run, const float* weights, int64_t stride,
                      int rows, float* out);
// The same for `tokens` values [tokens, D] in full precision.
void AccumulatePage(NumberType type, const void* values, int tokens,
                    int head_dim, int64_t ahead, const float* weights,
                    int64_t stride, int rows, float* out);

// Whether ScoreBlocks and AccumulateBlocks take the format, and whether they
// compute in integers if asked to.
bool HasBlockKernel(const LaneBlock& format);
bool HasInt8Kernel(const LaneBlock& format);

}  // namespace kvmix
