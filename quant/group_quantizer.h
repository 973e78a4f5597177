// Group-wise asymmetric quantization: the arithmetic of one group.
//
// A group is `size` numbers that share a scale and a zero point, both half:
//   zero  = half(min)      scale = half((max - min) / (2^bits - 1))
//   code  = clamp(round((x - zero) / scale), 0, 2^bits - 1)
//   x_hat = code * scale + zero
// in float, with the rounded scale and zero, ties to even. A group whose scale
// rounds to 0, a constant one above all, has codes 0: it becomes its zero
// point. Inside [zero, zero + (2^bits - 1) * scale], |x - x_hat| <= scale / 2.
// (Li et al., "KVmix", arXiv 2506.08018, section 3; the same rule as KIVI's.)
//
// Any float may be given. Before all else numbers beyond the range of half,
// infinities too, become +-65504, and NaN becomes 0; a scale beyond 65504 (1
// bit only) becomes 65504. The cache refuses such numbers before they come
// here.
//
// Packing (bit_packing.h): DENSE, or one of KVmix's 3-bit words of 11 codes,
// whose eleventh code has 2 bits. With KVMIX_3BIT_11 it shares the scale and
// saturates at 3 * scale; with KVMIX_3BIT_11_RESCALED its scale is 7/3 of the
// stored one, that is, range / 3.
//
// Every instruction set gives the same codes and the same x_hat, bit for bit.
#pragma once

#include <cstdint>

#include "kvmix/base/half.h"
#include "quant/bit_packing.h"
#include "quant/quant_format.pb.h"

namespace kvmix {

inline constexpr int kMaxGroupSize = 4096;

struct GroupFormat {
  int bits = 0;  // 1 to 8
  int size = 0;  // 1 to kMaxGroupSize; KVmix's 3-bit words: 11
  QuantFormat::Packing packing = QuantFormat::DENSE;
  // Words that the codes of a group take.
  int words() const {
    return packing == QuantFormat::DENSE ? PackedWords(size, bits) : 1;
  }
};

// x [n, size] -> words [n, format.words()], scales [n], zeros [n].
void EncodeGroups(const GroupFormat& format, const float* x, int n,
                  uint32_t* words, Half* scales, Half* zeros);

// The other way. Group i goes to x + i * stride. Reads up to 7 bytes beyond the
// words, which must be readable (in a block, scales and zero points follow).
void DecodeGroups(const GroupFormat& format, const uint32_t* words,
                  const Half* scales, const Half* zeros, int n, float* x,
                  int64_t stride);

}  // namespace kvmix
