// Element types of weight files, and how each becomes float.
//
// A row of weights is a sequence of blocks; a block of B elements takes S bytes
// and is decoded on its own. Integers are little-endian, "half" is IEEE
// binary16. For the plain types a block is one element. `d` and `m` are a
// block's scale and minimum, q a code, x the weight.
//
// type   B    S    layout (byte offset: field)                    x
// F32    1    4    0: float
// F16    1    2    0: half
// BF16   1    2    0: bfloat16
// Q4_0   32   18   0: half d   2: nibbles[16]                     d * (q - 8)
// Q4_1   32   20   0: half d   2: half m   4: nibbles[16]         d * q + m
// Q5_0   32   22   0: half d   2: u32 high   6: nibbles[16]       d * (q - 16)
// Q5_1   32   24   0: half d   2: half m   4: u32 high
//                  8: nibbles[16]                                 d * q + m
// Q8_0   32   34   0: half d   2: i8 q[32]                        d * q
// Q4_K   256  144  0: half d   2: half dmin   4: scales[12]
//                  16: nibbles[128]                    (d * s) * q - (dmin * t)
// Q5_K   256  176  0: half d   2: half dmin   4: scales[12]
//                  16: high[32]   48: nibbles[128]     (d * s) * q - (dmin * t)
// Q6_K   256  210  0: low[128]   128: high[64]   192: i8 s[16]
//                  208: half d                         (d * s) * (q - 32)
//
// Q4_*, Q5_*: element i < 16 is the low nibble of byte i, element i >= 16 the
// high nibble of byte i - 16; bit i of `high` is the fifth bit of element i.
//
// Q4_K, Q5_K: 8 sub-blocks of 32 elements, each with a 6-bit scale s and
// minimum t. Sub-blocks 2p and 2p+1 are the low and the high nibbles of bytes
// [32p, 32p + 32). Bit k of high[j] is the fifth bit of element j of sub-block
// k. The twelve bytes of scales, most significant bit first (A = s[0] .. H =
// s[7], small letters t; a two-bit field holds the upper bits of its value):
//   0..3: EEAAAAAA FFBBBBBB GGCCCCCC HHDDDDDD
//   4..7: eeaaaaaa ffbbbbbb ggcccccc hhdddddd
//   8..11: eeeeEEEE ffffFFFF ggggGGGG hhhhHHHH
//
// Q6_K: two halves of 128 elements; half h has low[64h ..], high[32h ..] and
// s[8h ..]. Element 32g + j of a half (g < 4): low nibble (g < 2) or high
// nibble (g >= 2) of low[32 * (g % 2) + j], upper two bits from bits 2g, 2g+1
// of high[j]; the scale is s[2g + j / 16].
//
// Products are rounded to float one by one (no fused multiply-add), so that the
// result is the same on every machine.
// Source: the GGUF specification and the public description of the k-quants.
#pragma once

#include <cstdint>

#include "absl/strings/string_view.h"

namespace kvmix {

enum class ElementType {
  kF32,
  kF16,
  kBF16,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ4_K,
  kQ5_K,
  kQ6_K,
};

// B, S and the name in the table above.
struct BlockLayout {
  absl::string_view name;
  int64_t elements;
  int64_t bytes;
};
const BlockLayout& LayoutOf(ElementType type);

// Decodes num_elements, a multiple of the block's elements, from `source` (any
// alignment) to `out`.
void DecodeBlocks(ElementType type, const uint8_t* source, int64_t num_elements,
                  float* out);

// 32 weights of a type with codes. Weight i is
//   scale[i / 16] * (codes[i] - zero) + minimum
// with zero = 8 for Q4_0, 128 for Q5_0, Q8_0 and Q6_K, and 0 for the types with
// a minimum; each operation is rounded to float.
struct CodeBlock {
  float scale[2] = {};
  float minimum = -0.0f;  // adding it changes no bit
  uint8_t codes[32] = {};
};
// num_elements / 32 blocks, of a type other than F32, F16, BF16.
void UnpackCodes(ElementType type, const uint8_t* source, int64_t num_elements,
                 CodeBlock* out);

}  // namespace kvmix
