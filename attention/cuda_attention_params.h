// What the kernels of the device KV cache take: raw pointers, sizes, strides.
// Host and device; no Abseil, no Protobuf.
//
// G = KV heads, H = query heads, D = head_dim, R = tokens of a chunk. An item
// is one sequence's part of a chunk.
#pragma once

#include <cstdint>

namespace kvmix {

enum class CudaNumber : int { kFloat, kHalf, kBFloat16 };

// Rows of numbers in device memory, one a token, `stride` numbers apart; a
// row's own numbers lie side by side.
struct CudaRows {
  const void* data = nullptr;
  CudaNumber type = CudaNumber::kFloat;
  int64_t stride = 0;
};
struct CudaMutableRows {
  void* data = nullptr;
  CudaNumber type = CudaNumber::kFloat;
  int64_t stride = 0;
};

enum class CudaLayout : int {
  kNone,      // 16 bits: nothing is packed
  kFragment,  // quant/cuda_layout.h
  kString,    // as on the CPU, quant/group_affine.cc
};

struct CudaFormat {
  CudaLayout layout = CudaLayout::kNone;
  int bits = 16;
  int group = 0;
  bool per_channel = false;
  float last_scale = 1;  // KVmix's words: of the eleventh code, over the scale
  bool eleven = false;   // KVmix's words
  int words = 0;         // kString: of a group
  int block_tokens = 0;
  int scales_offset = 0, zeros_offset = 0;  // bytes from the block's start
  int block_bytes = 0;                      // a multiple of 16
};

struct CudaItem {
  int sequence = 0;
  int tokens_seen = 0;  // before the chunk, those that have left included
  int num_tokens = 0;
  int first_row = 0;  // of the chunk's R
};

// Tokens of a stream: the keys or the values of one KV head of one sequence.
struct CudaCounts {
  int tokens_before = 0;  // the chunk
  int packed_before = 0;  // of these, in packed blocks
  int packed_after = 0;
  // Not 0: tokens leave at the end of the chunk, and CudaCompact, not
  // CudaFinishChunk, brings those of a longer chunk to their places.
  int compacts = 0;
};

// Where a stream lies.
struct CudaPlace {
  uint8_t* blocks = nullptr;   // of block_bytes each
  uint16_t* window = nullptr;  // [window_tokens][D] half, a ring
  uint16_t* sinks = nullptr;   // [max_sinks][D] half
  // [tokens] of keys, if an eviction policy goes by it: attention that each
  // token has received, mean over the query heads.
  float* received = nullptr;
};

// The keys or the values of one layer.
struct CudaSide {
  CudaFormat format;
  bool keys = false;
  const CudaPlace* places = nullptr;  // [sequence][G]
  int window_tokens = 0;
  // [R][G][D] half: tokens of items that bring more than one
  uint16_t* chunk = nullptr;
  const CudaCounts* counts = nullptr;  // [items][counted_heads]
};

struct CudaLayer {
  CudaSide key, value;
  const CudaItem* items = nullptr;
  int num_items = 0;
  int num_kv_heads = 0;  // G
  int head_dim = 0;      // D
  int max_sinks = 0;
  int counted_heads = 1;  // KV heads with counts of their own: all, or G
  bool flush_before_attention = false;  // of items of one token
  int* unfit = nullptr;                 // set to 1 by numbers beyond half
};

struct CudaAttentionParams {
  CudaLayer layer;
  CudaRows queries;     // [R, H, D]
  CudaMutableRows out;  // [R, H, D]
  int num_heads = 0;    // H
  float scale = 0;
  int sliding_window = 0;
  int max_queries = 0;  // of an item
  int splits = 1;
  // [R, H, splits, D], max and sum [R, H, splits]; with one split unused
  float* partial_out = nullptr;
  float* partial_max = nullptr;
  float* partial_sum = nullptr;
};

}  // namespace kvmix
