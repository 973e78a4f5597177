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
#include "hwy/highway.h"
#include "quant/lane_codes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvmix {
namespace HWY_NAMESPACE {
namespace packed {
using namespace lane_codes;  // NOLINT

// Vectors of a slice that are computed together: as many as registers hold.
constexpr int kSpan = 2;
// The largest head_dim, or tokens of a block, of kernels for blocks.
constexpr int kMaxHeadDim = 256;
// Rows computed together.
constexpr int kMaxRows = 4;
// The code that rounding errors are given back at.
template <int kBits>
constexpr float kMiddle = ((1 << kBits) - 1) / 2.0f;
// Sums kept apart, so that a multiply-add need not wait for the last one.
constexpr int Chains(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

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

// bytes [kLanes] = v, which fit. Byte is int8_t or uint8_t.
template <class Byte>
HWY_INLINE void StoreBytes(IntV v, Byte* bytes) {
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes),
                   _mm512_cvtepi32_epi8(v.raw));
#else
  const hn::Rebind<Byte, Floats> d8;
  hn::StoreU(hn::DemoteTo(d8, v), d8, bytes);
#endif
}

struct AddOp {
  template <class V>
  HWY_INLINE V operator()(V a, V b) const {
    return hn::Add(a, b);
  }
};
struct MaxOp {
  template <class V>
  HWY_INLINE V operator()(V a, V b) const {
    return hn::Max(a, b);
  }
};

// Up to kMany vectors that are reduced together: a reduction of one vector is a
// chain of steps that each wait for the last.
constexpr int kMany = 16;
struct ManyVectors {
  alignas(64) float lanes[kMany][kLanes];
  HWY_INLINE void Set(int i, FloatV v) { hn::Store(v, Floats(), lanes[i]); }
  HWY_INLINE FloatV Get(int i) const { return hn::Load(Floats(), lanes[i]); }
};

#if HWY_TARGET == HWY_SCALAR
template <class Op>
HWY_INLINE void ReduceMany(Op, const ManyVectors& v, int n, float* out) {
  for (int i = 0; i < n; ++i) out[i] = v.lanes[i][0];
}
#else
// out [i] = all lanes of vector i, for i in [0, n); writes kMany numbers.
template <class Op>
HWY_INLINE void ReduceMany(Op op, const ManyVectors& v, int n, float* out) {
  const Floats d;
  const hn::CappedTag<float, 4> d4;
  // Interleaving two vectors and reducing the halves leaves two numbers of
  // each in every block of 128 bits; once more, one number of each of four.
  const auto halve = [&](FloatV a, FloatV b) KVMIX_KERNEL_LAMBDA {
    return op(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  };
  for (int i = 0; i < n; i += 4) {
    const FloatV four =
        halve(halve(v.Get(i), v.Get(i + 2)), halve(v.Get(i + 1), v.Get(i + 3)));
    alignas(64) float blocks[kLanes];
    hn::Store(four, d, blocks);
    auto total = hn::Load(d4, blocks);
    for (int b = 4; b < kLanes; b += 4)
      total = op(total, hn::Load(d4, blocks + b));
    hn::Store(total, d4, out + i);
  }
}
#endif

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

// bytes [kLanes] = x, in steps, rounded; returns them.
template <class Byte>
HWY_INLINE IntV RoundToBytes(FloatV x, Byte* bytes) {
  const IntV code = ToNearest(x);
  StoreBytes(code, bytes);
  return code;
}

// sum += codes * numbers over the 32 inner rows of a unit, in float or in
// integers. numbers: for each row, those of the unit.
template <int kBits, int kRows>
HWY_INLINE void AddUnit(FloatV table, const uint32_t* unit,
                        const float* const (&numbers)[kRows],
                        FloatV (&sum)[Chains(kRows)][kSpan][kRows]) {
  Unroll<LaneBlock::kUnit>([&](auto i) KVMIX_KERNEL_LAMBDA {
    constexpr int kChain = i % Chains(kRows);
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
                        IntV (&sum)[Chains(kRows)][kSpan][kRows]) {
  Unroll<LaneBlock::kUnit / 4>([&](auto i) KVMIX_KERNEL_LAMBDA {
    constexpr int kChain = i % Chains(kRows);
    WordV codes[kSpan];
    for (int v = 0; v < kSpan; ++v)
      codes[v] = FourCodes<kBits, i>(unit + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const WordV number = SetFour(numbers[r] + 4 * i);
      for (int v = 0; v < kSpan; ++v)
        sum[kChain][v][r] = std::is_signed_v<Byte>
                                ? DotFour(sum[kChain][v][r], codes[v], number)
                                : DotFour(sum[kChain][v][r], number, codes[v]);
    }
  });
}

template <class V, int kRows>
HWY_INLINE void Clear(V (&sum)[Chains(kRows)][kSpan][kRows]) {
  for (auto& chain : sum)
    for (auto& vec : chain)
      for (V& v : vec) v = hn::Zero(hn::DFromV<V>());
}
template <class V, int kRows>
HWY_INLINE V Total(const V (&sum)[Chains(kRows)][kSpan][kRows], int v, int r) {
  V total = sum[0][v][r];
  for (int c = 1; c < Chains(kRows); ++c) total = hn::Add(total, sum[c][v][r]);
  return total;
}

// Where the slices of a run lie.
struct Slices {
  Slices(const BlockRun& run, int per_block) {
    int index = run.first_slice / per_block;
    int part = run.first_slice % per_block;
    for (int i = 0; i < run.num_slices; ++i) {
      block[i] = run.block + index * run.stride;
      in_block[i] = part;
      if (++part == per_block) {
        part = 0;
        ++index;
      }
    }
  }
  const uint8_t* block[kMaxRunSlices];
  int in_block[kMaxRunSlices];
};

HWY_INLINE BlockRun WithoutPrefetch(BlockRun run) {
  run.ahead = 0;
  return run;
}

// Prefetches, a few lines at a time: many at once would wait for each other.
class LinesAhead {
 public:
  // Of [p, p + bytes), in `steps` steps.
  LinesAhead(const void* p, int64_t bytes, int steps)
      : next_(static_cast<const char*>(p)),
        end_(next_ + bytes),
        lines_((bytes + 64 * steps - 1) / (64 * steps)) {}
  // What lies run.ahead bytes behind a run.
  LinesAhead(const BlockRun& run, int per_block, int steps)
      : LinesAhead(run.block + run.ahead + Offset(run, per_block, 0),
                   run.ahead == 0 ? 0
                                  : Offset(run, per_block, run.num_slices) -
                                        Offset(run, per_block, 0),
                   steps) {}
  HWY_INLINE void Step() {
    for (int64_t i = 0; i < lines_ && next_ < end_; ++i, next_ += 64)
      PrefetchLine(next_);
  }

 private:
  static int64_t Offset(const BlockRun& run, int per_block, int slices) {
    return (run.first_slice + slices) * run.stride / per_block;
  }
  const char* next_;
  const char* const end_;
  const int64_t lines_;
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
