// Quantize and pack, on a device: one pass over numbers, whose codes go where
// attention reads them. The arithmetic is quant/group_quantizer.h's, bit for
// bit; the layout is quant/cuda_layout.h's. Device code alone; included by .cu
// files.
//
// A warp packs one unit row at a time: keys, 32 channels of a block; values,
// the channels of one group, 32 tokens. It reads numbers in the order in which
// their codes will lie, so a lane makes its own words.
//
// Numbers say what is packed: Row(n, channel)[i] is token n's number of channel
// channel + i, as float.
#pragma once

#include "attention/cuda_fragments.h"
#include "attention/cuda_stream.h"
#include "kvmix/base/warp.h"
#include "quant/cuda_layout.h"

namespace kvmix {
namespace cuda_pack {

using namespace cuda_fragments;  // NOLINT
using namespace cuda_layout;     // NOLINT
using namespace cuda_stream;     // NOLINT

constexpr float kMaxHalf = 65504.0f;

// ---- The arithmetic of a group ----

struct Range {
  float low = INFINITY, high = -INFINITY;
  __device__ __forceinline__ void Add(float x) {
    low = fminf(low, x);
    high = fmaxf(high, x);
  }
};

struct Scale {
  __half scale, zero;
};

// As the CPU reads numbers before it quantizes them.
__device__ __forceinline__ float Finite(float x) {
  return x == x ? fminf(fmaxf(x, -kMaxHalf), kMaxHalf) : 0.0f;
}
__device__ __forceinline__ Scale ScaleOf(const Range& range, int levels) {
  const float step =
      __fdiv_rn(__fsub_rn(range.high, range.low), static_cast<float>(levels));
  return {__float2half_rn(fminf(step, kMaxHalf)), __float2half_rn(range.low)};
}
__device__ __forceinline__ uint32_t CodeOf(float x, float scale, float zero,
                                           int levels) {
  if (scale == 0.0f) return 0;
  const float steps = __fdiv_rn(__fsub_rn(x, zero), scale);
  return static_cast<uint32_t>(
      __float2int_rn(fminf(fmaxf(steps, 0.0f), static_cast<float>(levels))));
}

// Over the lanes of equal t = lane % 4.
__device__ __forceinline__ void ReduceOverRows(Range& range) {
  range.low = WarpReduce<4, 8, 16>(range.low, MinOf());
  range.high = WarpReduce<4, 8, 16>(range.high, MaxOf());
}

// ---- Fragment layout ----

// A lane's codes of a unit, a byte each: [j][2c + e].
struct Codes {
  uint32_t bytes[kRows][2];
  __device__ __forceinline__ void Set(int j, int i, uint32_t code) {
    bytes[j][i / 4] |= code << (8 * (i % 4));
  }
  __device__ __forceinline__ uint32_t operator()(int j, int i) const {
    return bytes[j][i / 4] >> (8 * (i % 4)) & 0xff;
  }
};

// A lane's words of a unit; `add`: the other codes that they hold stay.
template <int kBits>
__device__ __forceinline__ void StoreWords(const Codes& codes, int units,
                                           int unit, bool add, uint32_t* to) {
  uint32_t words[kBits] = {};
#pragma unroll
  for (int plane = 0; plane < NumPlanes(kBits); ++plane) {
    const int width = PlaneWidth(kBits, plane),
              start = PlaneStart(kBits, plane);
#pragma unroll
    for (int place = 0; place < 8 * kRows; ++place) {
      const int i = place / kRows, j = place % kRows, c = i / 2;
      words[start + WordInPlane(width, c, j)] |=
          (codes(j, i) >> start & ((1u << width) - 1))
          << (BitInWord(width, c, j) + 16 * (i % 2));
    }
  }
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int w = 0; w < kBits; ++w) {
    uint32_t& word = to[WordIndex(kBits, units, unit, w, lane)];
    word = add ? word | words[w] : words[w];
  }
}

__device__ inline void StoreUnit(int bits, const Codes& codes, int units,
                                 int unit, bool add, uint32_t* to) {
  WithBits(bits,
           [&](auto b) { StoreWords<b.value>(codes, units, unit, add, to); });
}

__device__ __forceinline__ uint8_t* BlockAt(const Stream& s, int block) {
  return s.blocks + static_cast<int64_t>(block) * s.side->format.block_bytes;
}

// Keys: block `block`, channels [32 unit, 32 unit + 32).
template <typename Numbers>
__device__ void PackKeyUnit(const Stream& s, const Numbers& numbers, int block,
                            int unit) {
  const CudaFormat& format = s.side->format;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int levels = (1 << format.bits) - 1, units = s.head_dim / kUnit;
  const int first = s.max_sinks + block * format.group;
  const int channel = unit * kUnit + 8 * t;  // of 8 side by side
  Range range[8];
  for (int n = g; n < format.group; n += 8) {
    const auto row = numbers.Row(first + n, channel);
#pragma unroll
    for (int i = 0; i < 8; ++i) range[i].Add(Finite(row[i]));
  }
  uint8_t* const bytes = BlockAt(s, block);
  __half* const scales =
      reinterpret_cast<__half*>(bytes + format.scales_offset) + channel;
  __half* const zeros =
      reinterpret_cast<__half*>(bytes + format.zeros_offset) + channel;
  float scale[8], zero[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    ReduceOverRows(range[i]);
    const Scale own = ScaleOf(range[i], levels);
    if (g == 0) {
      scales[i] = own.scale;
      zeros[i] = own.zero;
    }
    scale[i] = __half2float(own.scale);
    zero[i] = __half2float(own.zero);
  }
  for (int part = 0; part < format.group / kUnit; ++part) {
    Codes codes = {};
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const auto row = numbers.Row(first + part * kUnit + 8 * j + g, channel);
#pragma unroll
      for (int i = 0; i < 8; ++i)
        codes.Set(j, i, CodeOf(Finite(row[i]), scale[i], zero[i], levels));
    }
    StoreUnit(format.bits, codes, units, unit, false,
              reinterpret_cast<uint32_t*>(bytes) +
                  part * CodeWords(format.bits, units));
  }
}

// Values: tokens [first, last) of block `block`, group `group` of channels.
// What the block holds of earlier tokens stays.
template <typename Numbers>
__device__ void PackValueGroup(const Stream& s, const Numbers& numbers,
                               int block, int first, int last, int group) {
  const CudaFormat& format = s.side->format;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int levels = (1 << format.bits) - 1, units = s.head_dim / kUnit;
  const int token = s.max_sinks + block * kUnit;
  const int begin = group * format.group;  // channels
  const bool add = first > 0;
  uint8_t* const bytes = BlockAt(s, block);
  __half* const scales =
      reinterpret_cast<__half*>(bytes + format.scales_offset) + group * kUnit;
  __half* const zeros =
      reinterpret_cast<__half*>(bytes + format.zeros_offset) + group * kUnit;
  float scale[8], zero[8];  // of tokens i = 2c + e
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int k = i / 2 * 8 + 2 * t + i % 2;
    const bool mine = k >= first && k < last;
    Range range;
    if (mine) {
      const auto row = numbers.Row(token + k, begin);
      for (int channel = g; channel < format.group; channel += 8)
        range.Add(Finite(row[channel]));
    }
    ReduceOverRows(range);
    const Scale own =
        mine ? ScaleOf(range, levels) : Scale{__half(0.0f), __half(0.0f)};
    if (g == 0 && (mine || !add)) {
      scales[8 * t + i] = own.scale;
      zeros[8 * t + i] = own.zero;
    }
    scale[i] = __half2float(own.scale);
    zero[i] = __half2float(own.zero);
  }
  for (int unit = begin / kUnit; unit < (begin + format.group) / kUnit;
       ++unit) {
    Codes codes = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int k = i / 2 * 8 + 2 * t + i % 2;
      if (k < first || k >= last) continue;
      const auto row = numbers.Row(token + k, unit * kUnit + 4 * g);
#pragma unroll
      for (int j = 0; j < kRows; ++j)
        codes.Set(j, i, CodeOf(Finite(row[j]), scale[i], zero[i], levels));
    }
    StoreUnit(format.bits, codes, units, unit, add,
              reinterpret_cast<uint32_t*>(bytes));
  }
}

template <typename Numbers>
__device__ void PackFragments(const Stream& s, const Numbers& numbers,
                              int begin, int end, int worker, int workers) {
  const int tokens = s.side->format.block_tokens;
  const int first_block = begin / tokens;
  const int per_block =  // units of keys, or groups of values
      s.head_dim / (s.side->keys ? kUnit : s.side->format.group);
  const int work = ((end + tokens - 1) / tokens - first_block) * per_block;
  for (int i = worker; i < work; i += workers) {
    const int block = first_block + i / per_block;
    if (s.side->keys) {
      PackKeyUnit(s, numbers, block, i % per_block);
    } else {
      PackValueGroup(s, numbers, block, max(begin - block * tokens, 0),
                     min(end - block * tokens, tokens), i % per_block);
    }
  }
}

// ---- Strings of bits ----

// Groups one after another, a thread each.
template <typename Numbers>
struct Group {
  const Numbers* numbers;
  int first_token, first_channel, size;
  bool per_channel;
  __device__ __forceinline__ float operator()(int i) const {
    const int n = first_token + (per_channel ? i : 0);
    return Finite(numbers->Row(n, first_channel + (per_channel ? 0 : i))[0]);
  }
};

template <typename Numbers>
__device__ void PackGroup(const Group<Numbers>& group, const CudaFormat& format,
                          uint32_t* words, __half* scale_out,
                          __half* zero_out) {
  const int levels = (1 << format.bits) - 1;
  Range range;
  for (int i = 0; i < group.size; ++i) range.Add(group(i));
  const Scale own = ScaleOf(range, levels);
  *scale_out = own.scale;
  *zero_out = own.zero;
  const float scale = __half2float(own.scale), zero = __half2float(own.zero);
  uint64_t string = 0;  // bits not stored yet
  int bits = 0;
  for (int i = 0; i < group.size; ++i) {
    const bool last = format.eleven && i + 1 == group.size;
    // As the CPU computes the eleventh's scale: two roundings.
    const float own_scale = last && format.last_scale != 1.0f
                                ? __fdiv_rn(__fmul_rn(scale, 7.0f), 3.0f)
                                : scale;
    const uint32_t code =
        scale == 0.0f ? 0
                      : CodeOf(group(i), own_scale, zero, last ? 3 : levels);
    string |= static_cast<uint64_t>(code) << bits;
    bits += last ? 2 : format.bits;
    if (bits >= 32 || i + 1 == group.size) {
      *words++ = static_cast<uint32_t>(string);
      string >>= 32;
      bits -= 32;
    }
  }
  if (bits > 0) *words = static_cast<uint32_t>(string);
}

template <typename Numbers>
__device__ void PackStrings(const Stream& s, const Numbers& numbers, int begin,
                            int end, int worker, int workers) {
  const CudaFormat& format = s.side->format;
  const int tokens = format.block_tokens;
  const int per_token = format.per_channel ? 0 : s.head_dim / format.group;
  const int work = format.per_channel ? (end - begin) / tokens * s.head_dim
                                      : (end - begin) * per_token;
  for (int i = worker; i < work; i += workers) {
    Group<Numbers> group{&numbers, 0, 0, format.group, format.per_channel};
    int block, index;  // of the group in its block
    if (format.per_channel) {
      block = begin / tokens + i / s.head_dim;
      index = i % s.head_dim;
      group.first_token = s.max_sinks + block * tokens;
      group.first_channel = index;
    } else {
      const int position = begin + i / per_token;
      block = position / tokens;
      index = position % tokens * per_token + i % per_token;
      group.first_token = s.max_sinks + position;
      group.first_channel = i % per_token * format.group;
    }
    uint8_t* const bytes =
        s.blocks + static_cast<int64_t>(block) * format.block_bytes;
    PackGroup(group, format,
              reinterpret_cast<uint32_t*>(bytes) + index * format.words,
              reinterpret_cast<__half*>(bytes + format.scales_offset) + index,
              reinterpret_cast<__half*>(bytes + format.zeros_offset) + index);
  }
}

// Packs `numbers` as positions [begin, end) of `s`. All threads of the grid's x
// take part, whole warps.
template <typename Numbers>
__device__ void Pack(const Stream& s, const Numbers& numbers, int begin,
                     int end) {
  if (begin == end) return;
  if (s.side->format.layout == CudaLayout::kString) {
    PackStrings(s, numbers, begin, end, blockIdx.x * blockDim.x + threadIdx.x,
                gridDim.x * blockDim.x);
  } else {
    const int warps = blockDim.x / 32;
    PackFragments(s, numbers, begin, end, blockIdx.x * warps + threadIdx.x / 32,
                  gridDim.x * warps);
  }
}

}  // namespace cuda_pack
}  // namespace kvmix
