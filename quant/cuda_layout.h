// How packed blocks lie on a CUDA device. Host and device.
//
// Keys PER_CHANNEL and values PER_TOKEN, DENSE, in groups and with a head_dim
// that are multiples of 32, lie as the tensor cores' A operand (PTX ISA,
// mma.m16n8k16) takes them, so that attention turns a word of codes into
// operands by masks and shifts alone. A block is cut into units of 32 tokens x
// 32 channels, and a unit into m x k, k being what attention sums over:
//
//             m = 0..31                   k = 0..31
//   keys      token                       channel: k = 8c + 2t + e
//   values    channel: m = 8j + g         token      is channel 8t + 2c + e
//             is channel 4g + j
//
// with m = 8j + g and k = 8c + 2t + e. (Channels in this order, a thread's
// numbers of an unquantized row lie side by side.) Codes (g, t) are those of
// lane 4g + t, who has 16 pairs (c, j) of codes e = 0, 1. A code's bits are cut
// into planes of 4, 2 and 1 bits, low bits first, 8 bits being one plane of 8.
// A plane of p bits takes p words of a lane; pair (c, j) lies in
//   p = 8   word 2c + j/2   bit 8(j%2)
//   p = 4   word c          bit 4j
//   p = 2   word c/2        bit 8(c%2) + 2j
//   p = 1   word 0          bit 8(c/2) + 2j + c%2
// e = 0 that many bits up in the word's low half, e = 1 in its high half.
//
//   block    codes, scales, zero points
//   codes    [tokens / 32][D/32 / V][words][lane][V] uint32, word w of units
//            u V .. u V + V - 1 side by side; V = 4, 2 or 1, what divides D/32
//   scales   keys    [D] half, as are the zero points
//            values  [D / group][32 tokens] half, token k = 8c + 2t + e at
//                    8t + 2c + e, where one lane's lie side by side
//
// All other formats lie as on the CPU (quant/group_affine.cc: strings of bits,
// group after group).
#pragma once

#include <cstdint>

#include "kvmix/base/host_device.h"

namespace kvmix {
namespace cuda_layout {

inline constexpr int kUnit = 32;  // tokens and channels of a unit
inline constexpr int kLanes = 32;
inline constexpr int kSets = 4;  // c
inline constexpr int kRows = 4;  // j

// Where a number of a unit lies: its lane and its place among the lane's.
struct Place {
  int lane, c, j, e;
};
KVMIX_HD constexpr Place PlaceOf(int m, int k) {
  return {m % 8 * 4 + k % 8 / 2, k / 8, m / 8, k % 2};
}
// The k of a key's channel, and the m of a value's channel, in their unit.
KVMIX_HD constexpr int KeyK(int channel) {
  return channel % 8 / 2 * 8 + channel / 8 * 2 + channel % 2;
}
KVMIX_HD constexpr int ValueM(int channel) {
  return channel % 4 * 8 + channel / 4;
}
// Where the scale of a value's token lies among its block's 32.
KVMIX_HD constexpr int ScaleSlot(int token) {
  return token % 8 / 2 * 8 + token / 8 * 2 + token % 2;
}

KVMIX_HD constexpr int NumPlanes(int bits) {
  return bits == 8 ? 1 : (bits >> 2 & 1) + (bits >> 1 & 1) + (bits & 1);
}
KVMIX_HD constexpr int PlaneWidth(int bits, int plane) {
  if (bits == 8) return 8;
  for (int width = 4; width > 0; width /= 2)
    if (bits & width && plane-- == 0) return width;
  return 0;
}
// The first bit of a plane, and also the first of its words.
KVMIX_HD constexpr int PlaneStart(int bits, int plane) {
  int start = 0;
  for (int i = 0; i < plane; ++i) start += PlaneWidth(bits, i);
  return start;
}
KVMIX_HD constexpr int WordInPlane(int width, int c, int j) {
  return width == 8 ? 2 * c + j / 2 : width == 4 ? c : width == 2 ? c / 2 : 0;
}
KVMIX_HD constexpr int BitInWord(int width, int c, int j) {
  return width == 8   ? 8 * (j % 2)
         : width == 4 ? 4 * j
         : width == 2 ? 8 * (c % 2) + 2 * j
                      : 8 * (c / 2) + 2 * j + c % 2;
}

// V of a row of units.
KVMIX_HD constexpr int UnitVector(int units) {
  return units % 4 == 0 ? 4 : units % 2 == 0 ? 2 : 1;
}
// Index of a word among the codes of 32 tokens.
KVMIX_HD constexpr int WordIndex(int bits, int units, int unit, int word,
                                 int lane) {
  const int v = UnitVector(units);
  return ((unit / v * bits + word) * kLanes + lane) * v + unit % v;
}
KVMIX_HD constexpr int CodeWords(int bits, int units) {
  return bits * units * kLanes;
}

// A code of unit `unit`, read from the codes of 32 tokens.
KVMIX_HD uint32_t ReadCode(const uint32_t* words, int bits, int units, int unit,
                           Place place) {
  uint32_t code = 0;
  for (int plane = 0; plane < NumPlanes(bits); ++plane) {
    const int width = PlaneWidth(bits, plane), start = PlaneStart(bits, plane);
    const int word = start + WordInPlane(width, place.c, place.j);
    const int bit = BitInWord(width, place.c, place.j) + 16 * place.e;
    code |= (words[WordIndex(bits, units, unit, word, place.lane)] >> bit &
             ((1u << width) - 1))
            << start;
  }
  return code;
}

}  // namespace cuda_layout
}  // namespace kvmix
