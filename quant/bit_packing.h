// Codes of `bits` bits packed into 32-bit words.
//
// The codes of a group are one string of bits, low bits first: code i has the
// string's bits [i * bits, (i + 1) * bits), and the string's bit n is bit n %
// 32 of word n / 32. So 32 codes take exactly `bits` words; with 1, 2, 4 or 8
// bits a word holds 32 / bits codes, with other widths codes run across words:
//
//   bits = 3   word 0: c0 = [0,3) ... c9 = [27,30), low 2 bits of c10 = [30,32)
//              word 1: high bit of c10 = [0,1), c11 = [1,4) ...
//
// A group starts at a word of its own; bits after its last code are 0.
//
// KVmix's released 3-bit word is this string cut at 32 bits: ten codes of three
// bits, and an eleventh (0..3) of which two bits are left.
#pragma once

#include <cstdint>

namespace kvmix {

constexpr int PackedWords(int count, int bits) {
  return static_cast<int>((static_cast<int64_t>(count) * bits + 31) / 32);
}

// Writes `num_words` words. Bits of the string beyond them must be 0.
void PackCodes(const uint32_t* codes, int count, int bits, uint32_t* words,
               int num_words);

// Code i. Bits beyond `num_words` read as 0.
inline uint32_t UnpackCode(const uint32_t* words, int num_words, int bits,
                           int i) {
  const int first = i * bits / 32, shift = i * bits % 32;
  uint64_t window = words[first];
  if (first + 1 < num_words)
    window |= static_cast<uint64_t>(words[first + 1]) << 32;
  return static_cast<uint32_t>(window >> shift) & ((1u << bits) - 1);
}

}  // namespace kvmix
