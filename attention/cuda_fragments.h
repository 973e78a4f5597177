// Codes of the fragment layout (quant/cuda_layout.h) as operands of tensor
// cores. Device code alone; included by .cu files.
//
// A code goes into a half as it is, as a part of the mantissa with exponent 0:
// a code at bit P is the subnormal number code * 2^(P - 24), exactly, which
// tensor cores multiply as any other. So masks and shifts are all that turns
// codes into numbers; powers of two, scales and zero points are dealt with in
// the other operand and in the sums.
#pragma once

#include <type_traits>

#include "kvmix/base/cuda.h"
#include "quant/cuda_layout.h"

namespace kvmix {
namespace cuda_fragments {

// P: row j's codes lie from this bit of each half on, chosen so that most need
// no shift.
KVMIX_HD constexpr int CodeBit(int bits, int j) {
  return bits <= 3 ? 2 * j : bits == 4 ? j % 2 * 4 : 0;
}
// 2^(24 - P): what a sum over codes of row j is multiplied with.
__device__ __forceinline__ float CodeUnit(int bits, int j) {
  return static_cast<float>(1 << (24 - CodeBit(bits, j)));
}

// Codes e = 0 and 1 of pair (c, j), in the two halves, each from bit P on.
template <int kBits>
__device__ __forceinline__ uint32_t Pair(const uint32_t (&words)[kBits], int c,
                                         int j) {
  using namespace cuda_layout;  // NOLINT
  uint32_t pair = 0;
#pragma unroll
  for (int plane = 0; plane < NumPlanes(kBits); ++plane) {
    const int width = PlaneWidth(kBits, plane),
              start = PlaneStart(kBits, plane);
    const int to = CodeBit(kBits, j) + start;
    const int shift = BitInWord(width, c, j) - to;
    const uint32_t word = words[start + WordInPlane(width, c, j)];
    const uint32_t mask = ((1u << width) - 1) << to;
    pair |= (shift >= 0 ? word >> shift : word << -shift) & (mask | mask << 16);
  }
  return pair;
}

// body(b) with b.value = `bits`, 1 to 8, known to the compiler.
template <typename Body>
__device__ __forceinline__ auto WithBits(int bits, const Body& body) {
  switch (bits) {
    case 1:
      return body(std::integral_constant<int, 1>());
    case 2:
      return body(std::integral_constant<int, 2>());
    case 3:
      return body(std::integral_constant<int, 3>());
    case 4:
      return body(std::integral_constant<int, 4>());
    case 5:
      return body(std::integral_constant<int, 5>());
    case 6:
      return body(std::integral_constant<int, 6>());
    case 7:
      return body(std::integral_constant<int, 7>());
    default:
      return body(std::integral_constant<int, 8>());
  }
}

// A lane's words of units [first, first + V) of 32 tokens, V = UnitVector:
// words[u][w].
template <int kBits, int kUnits>
__device__ __forceinline__ void LoadWords(
    const uint32_t* codes, int first,
    uint32_t (&words)[cuda_layout::UnitVector(kUnits)][kBits]) {
  using namespace cuda_layout;  // NOLINT
  constexpr int kV = UnitVector(kUnits);
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int w = 0; w < kBits; ++w) {
    const uint32_t* from = codes + WordIndex(kBits, kUnits, first, w, lane);
    if constexpr (kV == 4) {
      const uint4 v = *reinterpret_cast<const uint4*>(from);
      words[0][w] = v.x;
      words[1][w] = v.y;
      words[2][w] = v.z;
      words[3][w] = v.w;
    } else if constexpr (kV == 2) {
      const uint2 v = *reinterpret_cast<const uint2*>(from);
      words[0][w] = v.x;
      words[1][w] = v.y;
    } else {
      words[0][w] = *from;
    }
  }
}

}  // namespace cuda_fragments
}  // namespace kvmix
