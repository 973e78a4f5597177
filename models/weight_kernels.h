// Products of a few or many rows with one panel of packed weights, in the
// calling thread.
//
// A panel holds 32 outputs; it is a sequence of blocks of 32 inputs, of which
// the last may be padded with zeros. Lanes of vectors are outputs, so that no
// sum runs across a vector, and each block lies so that every compute type can
// use it:
//
// layout            bytes  a block of 32 inputs (k) x 32 outputs (n)
// kFloat32          4096   float [k][n]
// kFloat16          2048   half [k][n]
// kBFloat16         2048   bf16 [k / 2][n][k % 2]: pairs as vdpbf16ps takes
// them kNibbles           576   half d[n], words[4][n] kNibblesMin        640
// half d[n], half m[n], words[4][n] kNibblesMinFloat   768   float d[n], float
// m[n], words[4][n] kBytes            1088   half d[n], words[8][n] kBytesMin
// 1152   half d[n], half m[n], words[8][n] kBytesMinFloat    1280   float d[n],
// float m[n], words[8][n] kBytesHalfBlocks  1280   float d[2][n] (of k < 16 and
// k >= 16), words[8][n]
//
// A word has 32 bits. Word i of bytes holds the codes of k = 4 i + j in bits
// [8 j, 8 j + 8): four codes as vpdpbusd takes them. Word i of nibbles holds k
// = 8 i + j in bits [8 j, 8 j + 4) and k = 8 i + 4 + j in [8 j + 4, 8 j + 8). A
// weight is d * q + m, or without m, d * (q - z) with z = 8 for nibbles and 128
// for bytes.
#pragma once

#include <cstdint>

#include "kvmix/base/half.h"

namespace kvmix {

enum class WeightLayout {
  kFloat32,
  kFloat16,
  kBFloat16,
  kNibbles,
  kNibblesMin,
  kNibblesMinFloat,
  kBytes,
  kBytesMin,
  kBytesMinFloat,
  kBytesHalfBlocks,
};

constexpr int64_t kPanelOutputs = 32;
constexpr int64_t kBlockInputs = 32;

int64_t WeightBlockBytes(WeightLayout layout);

// 32 inputs rounded to 8 bits: x = scale * codes, scale = max |x| / 127. A NaN
// or infinity makes the scale NaN or infinite.
struct Int8Block {
  float scale;
  int32_t sums[2];  // of codes [0, 16) and [16, 32)
  int8_t codes[32];
};

// x [size], padded with zeros to whole blocks.
void RoundToInt8(const float* x, int64_t size, Int8Block* out);
void RoundToBFloat16(const float* x, int64_t size, BFloat16* out);

// out [num_blocks * 32][32]: weights as float, as DecodeBlocks of
// ggml_blocks.h gives them, bit for bit.
void DecodePanelBlocks(WeightLayout layout, const uint8_t* blocks,
                       int64_t num_blocks, float* out);

// Each adds to c [num_rows][32] at a stride, over num_blocks blocks in order.
// c[m][n] does not depend on num_rows.

// In float: one chain of fused multiply-adds over the inputs. x [num_rows,
// inputs] at a stride; inputs may end within the last block.
void MultiplyFloat(WeightLayout layout, const float* x, int64_t x_stride,
                   int64_t num_rows, const uint8_t* blocks, int64_t inputs,
                   float* c, int64_t c_stride);

// With weights rounded to bf16: for each pair of inputs, the odd one's product
// is added and then the even one's, each rounded once (vdpbf16ps). Denormals
// may count as 0.
void MultiplyBFloat16(WeightLayout layout, const BFloat16* x, int64_t x_stride,
                      int64_t num_rows, const uint8_t* blocks,
                      int64_t num_blocks, float* c, int64_t c_stride);

// For each block, the sum of products of codes is exact; it is converted to
// float and added times both scales, then the minimum's share. Layouts of
// nibbles and bytes only. x_stride in blocks.
void MultiplyInt8(WeightLayout layout, const Int8Block* x, int64_t x_stride,
                  int64_t num_rows, const uint8_t* blocks, int64_t num_blocks,
                  float* c, int64_t c_stride);

}  // namespace kvmix
