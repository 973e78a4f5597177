// Codes of a LaneBlock in registers, for one instruction set: to be included
// inside HWY_NAMESPACE code, as Highway's own -inl.h files are.
#if defined(KVMIX_QUANT_LANE_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVMIX_QUANT_LANE_CODES_INL_H_
#undef KVMIX_QUANT_LANE_CODES_INL_H_
#else
#define KVMIX_QUANT_LANE_CODES_INL_H_
#endif

#include <cstdint>
#include <type_traits>
#include <utility>

#include "hwy/highway.h"
#include "kvmix/base/half.h"
#include "quant/lane_block.h"

HWY_BEFORE_NAMESPACE();
namespace kvmix {
namespace HWY_NAMESPACE {
namespace lane_codes {
namespace hn = hwy::HWY_NAMESPACE;

// 16 lanes at most, so that a slice is two or more vectors everywhere.
using Floats = hn::CappedTag<float, 16>;
using Ints = hn::RebindToSigned<Floats>;
using Words = hn::RebindToUnsigned<Floats>;
using FloatV = hn::Vec<Floats>;
using IntV = hn::Vec<Ints>;
using WordV = hn::Vec<Words>;
constexpr int kLanes = HWY_MIN(HWY_LANES(float), 16);
constexpr int kSliceVecs = LaneBlock::kSlice / kLanes;

// For lambdas that are parts of a kernel.
#undef KVMIX_KERNEL_LAMBDA
#define KVMIX_KERNEL_LAMBDA HWY_ATTR __attribute__((always_inline))

// body(std::integral_constant<int, i>) for i in [0, n), unrolled.
template <int n, class Body>
HWY_INLINE void Unroll(Body&& body) {
  [&]<int... i>(std::integer_sequence<int, i...>) KVMIX_KERNEL_LAMBDA {
    (body(std::integral_constant<int, i>()), ...);
  }
  (std::make_integer_sequence<int, n>());
}

// The planes of a code of kBits: their widths, the word where each begins and
// the bit of the code.
constexpr int NumPlanes(int bits) {
  return bits == 8 ? 1 : (bits >> 2 & 1) + (bits >> 1 & 1) + (bits & 1);
}
constexpr int PlaneWidth(int bits, int plane) {
  if (bits == 8) return 8;
  for (int width = 4; width > 0; width /= 2)
    if ((bits & width) != 0 && plane-- == 0) return width;
  return 0;
}
constexpr int PlaneStart(int bits, int plane) {
  int start = 0;
  for (int i = 0; i < plane; ++i) start += PlaneWidth(bits, i);
  return start;
}

template <int kShift>  // to the right; negative: to the left
HWY_INLINE WordV Shifted(WordV v) {
  if constexpr (kShift > 0) return hn::ShiftRight<kShift>(v);
  if constexpr (kShift < 0) return hn::ShiftLeft<-kShift>(v);
  return v;
}

// Word w of the lanes at `unit` (lane offset included).
HWY_INLINE WordV LoadWords(const uint32_t* unit, int w) {
  return hn::LoadU(Words(), unit + w * LaneBlock::kSlice);
}

// Plane kPlane of code kInner of the unit, moved to bit kTo; other bits are
// anything.
template <int kBits, int kPlane, int kInner, int kTo>
HWY_INLINE WordV PlaneBits(const uint32_t* unit) {
  constexpr int kWidth = PlaneWidth(kBits, kPlane);
  constexpr int kWord = PlaneStart(kBits, kPlane) + kInner / (32 / kWidth);
  constexpr int kBit = 8 * (kInner % 4) + kWidth * (kInner / 4 % (8 / kWidth));
  return Shifted<kBit - kTo>(LoadWords(unit, kWord));
}

// Code kInner of the unit.
template <int kBits, int kInner>
HWY_INLINE WordV Code(const uint32_t* unit) {
  const Words d;
  WordV code = hn::Zero(d);
  Unroll<NumPlanes(kBits)>([&](auto plane) KVMIX_KERNEL_LAMBDA {
    constexpr int kPlane = plane;
    constexpr int kStart = PlaneStart(kBits, kPlane);
    constexpr uint32_t kMask = ((1u << PlaneWidth(kBits, kPlane)) - 1)
                               << kStart;
    const WordV bits = hn::And(PlaneBits<kBits, kPlane, kInner, kStart>(unit),
                               hn::Set(d, kMask));
    code = kPlane == 0 ? bits : hn::Or(code, bits);
  });
  return code;
}

// Codes 4 * kFour to 4 * kFour + 3 of the unit in the four bytes of each word.
template <int kBits, int kFour>
HWY_INLINE WordV FourCodes(const uint32_t* unit) {
  const Words d;
  WordV codes = hn::Zero(d);
  Unroll<NumPlanes(kBits)>([&](auto plane) KVMIX_KERNEL_LAMBDA {
    constexpr int kPlane = plane;
    constexpr int kStart = PlaneStart(kBits, kPlane);
    constexpr uint32_t kMask =
        (((1u << PlaneWidth(kBits, kPlane)) - 1) << kStart) * 0x01010101u;
    const WordV bits = hn::And(
        PlaneBits<kBits, kPlane, 4 * kFour, kStart>(unit), hn::Set(d, kMask));
    codes = kPlane == 0 ? bits : hn::Or(codes, bits);
  });
  return codes;
}

#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
// Entry index % 16 of a table: the low four bits of each lane count.
HWY_INLINE FloatV LookUp(FloatV table, WordV index) {
  return FloatV{_mm512_permutexvar_ps(index.raw, table.raw)};
}
#endif

// Code kInner of the unit as a float. `table` is CodeTable<kBits>().
template <int kBits>
HWY_INLINE FloatV CodeTable() {
  alignas(64) float table[16];
  for (int i = 0; i < 16; ++i)
    table[i] = static_cast<float>(i & ((1 << (kBits & 7)) - 1));
  return hn::Load(Floats(), table);
}
template <int kBits, int kInner>
HWY_INLINE FloatV FloatCode([[maybe_unused]] FloatV table,
                            const uint32_t* unit) {
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  // Bits above the code do not matter: the table repeats.
  if constexpr (NumPlanes(kBits) == 1 && kBits <= 4) {
    return LookUp(table, PlaneBits<kBits, 0, kInner, 0>(unit));
  } else if constexpr (kBits == 3) {
    return LookUp(table, hn::IfVecThenElse(hn::Set(Words(), 3u),
                                           PlaneBits<3, 0, kInner, 0>(unit),
                                           PlaneBits<3, 1, kInner, 2>(unit)));
  }
#endif
  return hn::ConvertTo(Floats(),
                       hn::BitCast(Ints(), Code<kBits, kInner>(unit)));
}

// x [n] = half [n], n a multiple of kLanes.
HWY_INLINE FloatV LoadHalf(const Half* half) {
#if HWY_TARGET == HWY_SCALAR
  return hn::Set(Floats(), ToFloat(*half));
#else
  const hn::Rebind<hwy::float16_t, Floats> d;
  return hn::PromoteTo(
      Floats(), hn::LoadU(d, reinterpret_cast<const hwy::float16_t*>(half)));
#endif
}

}  // namespace lane_codes
}  // namespace HWY_NAMESPACE
}  // namespace kvmix
HWY_AFTER_NAMESPACE();

#endif  // KVMIX_QUANT_LANE_CODES_INL_H_
