// What the kernels for keys and for values share, for one instruction set.
#if defined(KVMIX_ATTENTION_PACKED_KERNELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVMIX_ATTENTION_PACKED_KERNELS_INL_H_
#undef KVMIX_ATTENTION_PACKED_KERNELS_INL_H_
#else
#define KVMIX_ATTENTION_PACKED_KERNELS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "attention/full_precision-inl.h"
#include "attention/packed_kernels.h"
#include "attention/reduce-inl.h"
#include "hwy/highway.h"
#include "quant/lane_codes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvmix {
namespace HWY_NAMESPACE {
namespace packed {
using namespace lane_codes;  // NOLINT
using reduce::AddOp;
using reduce::MaxOp;
using reduce::ReduceFour;

// Vectors of a slice that are computed together: as many as registers hold.
constexpr int kSpan = 2;
// The largest head_dim, or tokens of a block, of kernels for blocks.
constexpr int kMaxHeadDim = 256;
// Rows computed together.
constexpr int kMaxRows = 4;
// The code that rounding errors are given back at.
template <int kBits>
constexpr float kMiddle = ((1 << kBits) - 1) / 2.0f;
// Whether every other sum is of codes where they lie, two bits up: a shift
// less, where there are registers for twice as many sums.
template <int kBits, class V>
constexpr bool kHighSums = (kBits == 2) &&
                           (std::is_same_v<V, IntV>)&&(HWY_TARGET <=
                                                       HWY_AVX3) &&
                           (HWY_ARCH_X86);
// Sums kept apart, so that a multiply-add need not wait for the last one.
template <int kBits, class V>
constexpr int Chains(int rows) {
  return rows == 1 ? 4 : rows == 2 || kHighSums<kBits, V> ? 2 : 1;
}

// sum + the products of four unsigned and four signed bytes in each 32-bit
// lane. One of them are codes, below 16, so that no step saturates: every
// instruction set gives the same integers.
HWY_INLINE IntV DotFour(IntV sum, WordV unsigned_bytes, WordV signed_bytes) {
#if HWY_TARGET == HWY_AVX3_DL
  // Not the intrinsic: Highway 1.0.3 names AVX-VNNI for this target, where it
  // means AVX512-VNNI, so that a compiler refuses it.
  asm("vpdpbusd %2, %1, %0"
      : "+v"(sum.raw)
      : "v"(unsigned_bytes.raw), "v"(signed_bytes.raw));
  return sum;
#elif HWY_TARGET == HWY_AVX3
  const auto pairs = _mm512_maddubs_epi16(unsigned_bytes.raw, signed_bytes.raw);
  return hn::Add(sum, IntV{_mm512_madd_epi16(pairs, _mm512_set1_epi16(1))});
#elif HWY_TARGET == HWY_AVX2
  const auto pairs = _mm256_maddubs_epi16(unsigned_bytes.raw, signed_bytes.raw);
  return hn::Add(sum, IntV{_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))});
#else
  const Ints d;
  Unroll<4>([&](auto i) KVMIX_KERNEL_LAMBDA {
    const IntV a = hn::BitCast(d, hn::And(hn::ShiftRight<8 * i>(unsigned_bytes),
                                          hn::Set(Words(), 0xffu)));
    const IntV b = hn::ShiftRight<24>(
        hn::BitCast(d, hn::ShiftLeft<24 - 8 * i>(signed_bytes)));
    sum = hn::Add(sum, hn::Mul(a, b));
  });
  return sum;
#endif
}

// The four bytes at `bytes`, in every lane.
HWY_INLINE WordV SetFour(const void* bytes) {
  uint32_t four;
  std::memcpy(&four, bytes, 4);
  return hn::Set(Words(), four);
}

// The nearest integers of numbers far inside the range of int32.
HWY_INLINE IntV ToNearest(FloatV v) {
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  return IntV{_mm512_cvtps_epi32(v.raw)};
#elif HWY_TARGET == HWY_AVX2
  return IntV{_mm256_cvtps_epi32(v.raw)};
#else
  return hn::NearestInt(v);
#endif
}

// Two vectors of integers on their way to bytes. Which lane is where is left to
// the instruction set.
#if HWY_TARGET <= HWY_AVX2 && HWY_ARCH_X86
using Shorts = hn::Repartition<int16_t, Floats>;
using ShortV = hn::Vec<Shorts>;

// The nearest integers, which fit.
HWY_INLINE ShortV ToShorts(FloatV a, FloatV b) {
  return hn::ReorderDemote2To(Shorts(), ToNearest(a), ToNearest(b));
}
HWY_INLINE ShortV ZeroShorts() { return hn::Zero(Shorts()); }
// bytes [4 * kLanes] = a and b, which fit; returns them.
template <class Byte>
HWY_INLINE WordV StoreBytes(ShortV a, ShortV b, Byte* bytes) {
  // Packing goes on within blocks of 128 bits, so that word j of block i has
  // lanes 4i to 4i + 3 of the j-th vector of lanes.
#if HWY_TARGET <= HWY_AVX3
  const __m512i order =
      _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const WordV packed{_mm512_permutexvar_epi32(
      order, std::is_signed_v<Byte> ? _mm512_packs_epi16(a.raw, b.raw)
                                    : _mm512_packus_epi16(a.raw, b.raw))};
#else
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const WordV packed{_mm256_permutevar8x32_epi32(
      std::is_signed_v<Byte> ? _mm256_packs_epi16(a.raw, b.raw)
                             : _mm256_packus_epi16(a.raw, b.raw),
      order)};
#endif
  hn::StoreU(packed, Words(), reinterpret_cast<uint32_t*>(bytes));
  return packed;
}
#else
struct ShortV {
  IntV a, b;
};
HWY_INLINE ShortV ToShorts(FloatV a, FloatV b) {
  return {ToNearest(a), ToNearest(b)};
}
HWY_INLINE ShortV ZeroShorts() { return {hn::Zero(Ints()), hn::Zero(Ints())}; }
template <class Byte>
HWY_INLINE WordV StoreBytes(ShortV a, ShortV b, Byte* bytes) {
  const hn::Rebind<Byte, Floats> d8;
  hn::StoreU(hn::DemoteTo(d8, a.a), d8, bytes);
  hn::StoreU(hn::DemoteTo(d8, a.b), d8, bytes + kLanes);
  hn::StoreU(hn::DemoteTo(d8, b.a), d8, bytes + 2 * kLanes);
  hn::StoreU(hn::DemoteTo(d8, b.b), d8, bytes + 3 * kLanes);
  return hn::LoadU(Words(), reinterpret_cast<const uint32_t*>(bytes));
}
#endif
constexpr int kShortLanes = 2 * kLanes;

// sum + the bytes in each word.
template <class Byte>
HWY_INLINE IntV AddBytes(IntV sum, WordV bytes) {
  const WordV ones = hn::Set(Words(), 0x01010101u);
  return std::is_signed_v<Byte> ? DotFour(sum, ones, bytes)
                                : DotFour(sum, bytes, ones);
}

// Halves that are not negative compare as integers do.
using HalfBits = hn::Rebind<uint16_t, Floats>;
using HalfBitsV = hn::Vec<HalfBits>;
HWY_INLINE HalfBitsV MaxHalf(HalfBitsV max, const Half* half) {
  return hn::Max(
      max, hn::LoadU(HalfBits(), reinterpret_cast<const uint16_t*>(half)));
}
HWY_INLINE FloatV ToFloats(HalfBitsV bits) {
  alignas(32) Half half[kLanes];
  hn::Store(bits, HalfBits(), reinterpret_cast<uint16_t*>(half));
  return LoadHalf(half);
}

// Up to kMany vectors that are reduced together.
constexpr int kMany = 16;
struct ManyVectors {
  alignas(64) float lanes[kMany][kLanes];
  HWY_INLINE void Set(int i, FloatV v) { hn::Store(v, Floats(), lanes[i]); }
  HWY_INLINE FloatV Get(int i) const { return hn::Load(Floats(), lanes[i]); }
};

// out [i] = all lanes of vector i, for i in [0, n); writes kMany numbers.
template <class Op>
HWY_INLINE void ReduceMany(Op op, const ManyVectors& v, int n, float* out) {
  for (int i = 0; i < n; i += 4) {
    const auto get = [&](int j) KVMIX_KERNEL_LAMBDA {
      return v.Get(j < n ? j : i);  // none that was not set
    };
    ReduceFour(Floats(), op, get(i), get(i + 1), get(i + 2), get(i + 3),
               out + i);
  }
}

// How numbers are rounded to bytes: number = step * byte, about.
struct Rounding {
  alignas(64) float step[kMany], inverse[kMany];

  // From bounds of the magnitudes, which become `levels` steps.
  HWY_INLINE void Set(const float* bound, float levels) {
    const Floats d;
    for (int i = 0; i < kMany; i += kLanes) {
      const FloatV m = hn::Load(d, bound + i);
      hn::Store(hn::Mul(m, hn::Set(d, 1 / levels)), d, step + i);
      // Nothing, where 1 / m would overflow.
      hn::Store(hn::IfThenElseZero(hn::Gt(m, hn::Set(d, 1e-30f)),
                                   hn::Div(hn::Set(d, levels), m)),
                d, inverse + i);
    }
  }
};

// bytes [n] = x [n] * inverse, rounded; returns their sums, in lanes. n is a
// multiple of 32; up to a multiple of 64, further bytes become 0.
template <class Byte>
HWY_INLINE IntV RoundToBytes(const float* x, int n, float inverse,
                             Byte* bytes) {
  const Floats d;
  const FloatV by = hn::Set(d, inverse);
  const auto shorts = [&](int i) KVMIX_KERNEL_LAMBDA {
    return i >= n ? ZeroShorts()
                  : ToShorts(hn::Mul(hn::LoadU(d, x + i), by),
                             hn::Mul(hn::LoadU(d, x + i + kLanes), by));
  };
  IntV sum = hn::Zero(Ints());
  for (int i = 0; i < n; i += 2 * kShortLanes)
    sum = AddBytes<Byte>(
        sum, StoreBytes(shorts(i), shorts(i + kShortLanes), bytes + i));
  return sum;
}

// sum += codes * numbers over the 32 inner rows of a unit, in float or in
// integers. numbers: for each row, those of the unit.
template <int kBits, int kRows>
HWY_INLINE void AddUnit(
    FloatV table, const uint32_t* unit, const float* const (&numbers)[kRows],
    FloatV (&sum)[Chains<kBits, FloatV>(kRows)][kSpan][kRows]) {
  Unroll<LaneBlock::kUnit>([&](auto i) KVMIX_KERNEL_LAMBDA {
    constexpr int kChain = i % Chains<kBits, FloatV>(kRows);
    FloatV code[kSpan];
    for (int v = 0; v < kSpan; ++v)
      code[v] = FloatCode<kBits, i>(table, unit + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const FloatV number = hn::Set(Floats(), numbers[r][i]);
      for (int v = 0; v < kSpan; ++v)
        sum[kChain][v][r] = hn::MulAdd(code[v], number, sum[kChain][v][r]);
    }
  });
}

template <int kBits, int kRows, class Byte>
HWY_INLINE void AddUnit(const uint32_t* unit,
                        const Byte* const (&numbers)[kRows],
                        IntV (&sum)[Chains<kBits, IntV>(kRows)][kSpan][kRows]) {
  Unroll<LaneBlock::kUnit / 4>([&](auto i) KVMIX_KERNEL_LAMBDA {
    constexpr int kChain = i % Chains<kBits, IntV>(kRows);
    WordV codes[kSpan];
    for (int v = 0; v < kSpan; ++v) {
      if constexpr (kHighSums<kBits, IntV> && kChain % 2 == 1) {
        codes[v] = hn::And(PlaneBits<2, 0, 4 * i, 2>(unit + v * kLanes),
                           hn::Set(Words(), 0x0c0c0c0cu));
      } else {
        codes[v] = FourCodes<kBits, i>(unit + v * kLanes);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const WordV number = SetFour(numbers[r] + 4 * i);
      for (int v = 0; v < kSpan; ++v)
        sum[kChain][v][r] = std::is_signed_v<Byte>
                                ? DotFour(sum[kChain][v][r], codes[v], number)
                                : DotFour(sum[kChain][v][r], number, codes[v]);
    }
  });
}

template <class V, int kChains, int kRows>
HWY_INLINE void Clear(V (&sum)[kChains][kSpan][kRows]) {
  for (auto& chain : sum)
    for (auto& vec : chain)
      for (V& v : vec) v = hn::Zero(hn::DFromV<V>());
}
template <int kBits, class V, int kChains, int kRows>
HWY_INLINE V Total(const V (&sum)[kChains][kSpan][kRows], int v, int r) {
  V total = sum[0][v][r];
  if constexpr (kHighSums<kBits, V>) {
    V high = sum[1][v][r];
    for (int c = 2; c < kChains; c += 2) {
      total = hn::Add(total, sum[c][v][r]);
      high = hn::Add(high, sum[c + 1][v][r]);
    }
    return hn::Add(total, hn::ShiftRight<2>(high));
  } else {
    for (int c = 1; c < kChains; ++c) total = hn::Add(total, sum[c][v][r]);
    return total;
  }
}

// Prefetches what lies ahead of a run's slices, scales included, each in parts:
// many lines at once would wait for each other.
class LinesAhead {
 public:
  LinesAhead(const LaneBlock& format, bool prefetch, int tokens_of_block,
             int parts)
      : slice_bytes_(format.bytes() * kSliceTokens / tokens_of_block),
        part_bytes_(prefetch ? (slice_bytes_ / parts + 63) / 64 * 64 : 0) {}
  HWY_INLINE void Step(const BlockSlice& slice, int part) const {
    if (slice.ahead == 0) return;
    const auto* first = reinterpret_cast<const char*>(slice.block) +
                        slice.ahead + slice.index * slice_bytes_;
    PrefetchLines(first + part * part_bytes_, part_bytes_);
  }

 private:
  const int64_t slice_bytes_, part_bytes_;
};

// body(std::integral_constant<int, k>, first) for rows [first, first + k),
// until all are done.
template <class Body>
HWY_INLINE void ForRows(int rows, Body&& body) {
  for (int first = 0; first < rows;) {
    const int left = rows - first;
    if (left == 1) {
      body(std::integral_constant<int, 1>(), first);
      return;
    }
    if (left == 2) {
      body(std::integral_constant<int, 2>(), first);
      return;
    }
    if (left == 3 || left == 6) {  // 6 is 3 + 3
      body(std::integral_constant<int, 3>(), first);
      first += 3;
      continue;
    }
    body(std::integral_constant<int, 4>(), first);
    first += 4;
  }
}

}  // namespace packed
}  // namespace HWY_NAMESPACE
}  // namespace kvmix
HWY_AFTER_NAMESPACE();

#endif  // KVMIX_ATTENTION_PACKED_KERNELS_INL_H_
