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
  int tokens_before = 0;
  int num_tokens = 0;
  int first_row = 0;  // of the chunk's R
};

// Tokens of a stream in packed blocks.
struct CudaCounts {
  int packed_before = 0;  // the chunk
  int packed_after = 0;
};

// The keys or the values of one layer.
struct CudaSide {
  CudaFormat format;
  bool keys = false;
  uint8_t* blocks = nullptr;  // [sequence][G][max_blocks] of block_bytes
  int max_blocks = 0;
  uint16_t* window = nullptr;  // [sequence][G][window_tokens][D] half, a ring
  int window_tokens = 0;
  uint16_t* sinks = nullptr;  // [sequence][G][max_sinks][D] half
  // [R][G][D] half: tokens of items that bring more than one
  uint16_t* chunk = nullptr;
  const CudaCounts* counts = nullptr;  // [items]
};

struct CudaLayer {
  CudaSide key, value;
  const CudaItem* items = nullptr;
  int num_items = 0;
  int num_kv_heads = 0;  // G
  int head_dim = 0;      // D
  int max_sinks = 0;
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
