// LaneBlock: how a block of dense codes lies in memory, so that attention can
// compute with codes as they lie, without unpacking them first.
//
// A block has lanes and an inner dimension. Products with a query sum over
// channels, those with attention weights sum over tokens, and a sum should run
// down registers, never across one:
//
//             lanes      inner
//   keys      tokens     channels
//   values    channels   tokens
//
// Lanes come in slices of 32, the inner dimension in units of 32:
//   codes [lanes / 32][inner / 32][bits][32] uint32
// The `bits` words of a lane hold its 32 codes of the unit, cut into planes of
// 4, 2 and 1 bits (8 bits: one plane of 8; 3 bits: the low two bits, then the
// high one). A plane of p bits takes p words. Word w of it has the codes of
// inner [4 * 8/p * w, 4 * 8/p * (w + 1)): four neighbours in its four bytes,
// the next four p bits further up:
//   inner i:  word i / (32/p), bit 8 * (i % 4) + p * (i / 4 % (8/p))
// so that four neighbours of the inner dimension are the four bytes that an
// integer dot product takes.
//
// A scale and a zero point, both half, belong to a group that runs
//   along lanes   keys PER_CHANNEL, values PER_TOKEN: [lanes / group][inner]
//   along inner   keys PER_TOKEN, values PER_CHANNEL: [inner / group][lanes]
// The arithmetic is group_quantizer.h's, bit for bit.
#pragma once

#include <cstdint>

#include "kvmix/base/half.h"

namespace kvmix {

struct LaneBlock {
  static constexpr int kSlice = 32;  // lanes
  static constexpr int kUnit = 32;   // inner

  int bits = 0;   // 1 to 8
  int lanes = 0;  // a multiple of kSlice
  int inner = 0;  // a multiple of kUnit
  int group = 0;  // elements that share a scale; a multiple of 32
  bool groups_along_lanes = false;

  int num_groups() const { return lanes * inner / group; }
  int64_t unit_words() const { return int64_t{bits} * kSlice; }
  int64_t slice_words() const { return inner / kUnit * unit_words(); }
  int64_t code_bytes() const { return lanes / kSlice * slice_words() * 4; }
  int64_t scale_bytes() const { return int64_t{2} * num_groups(); }
  int64_t bytes() const { return code_bytes() + 2 * scale_bytes(); }

  const uint32_t* slice(const uint8_t* block, int index) const {
    return reinterpret_cast<const uint32_t*>(block) + index * slice_words();
  }
  const Half* scales(const uint8_t* block) const {
    return reinterpret_cast<const Half*>(block + code_bytes());
  }
  const Half* zeros(const uint8_t* block) const {
    return reinterpret_cast<const Half*>(block + code_bytes() + scale_bytes());
  }
};

// A block of KVmix's 3-bit words (bit_packing.h), keys PER_CHANNEL: 11 tokens.
//   words [D] uint32, scales [D] half, zeros [D] half
struct ElevenBlock {
  static constexpr int kTokens = 11;
  int head_dim = 0;      // D
  float last_scale = 1;  // of the eleventh code, as a multiple of the scale
  int64_t bytes() const { return int64_t{8} * head_dim; }
};

// A part of a block: lanes and inner rows [first, first + count).
struct LanePart {
  int first_lane = 0, num_lanes = 0;
  int first_inner = 0, num_inner = 0;
};

// x [num_inner, stride] -> the part of `block`, whose codes there must be 0
// still. The part consists of whole groups.
void EncodeLanes(const LaneBlock& format, const LanePart& part, const float* x,
                 int64_t stride, uint8_t* block);

// The other way, for any part.
void DecodeLanes(const LaneBlock& format, const LanePart& part,
                 const uint8_t* block, float* x, int64_t stride);

}  // namespace kvmix
