#include "quant/lane_block.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/lane_block.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"
#include "quant/lane_codes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvmix {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using namespace lane_codes;  // NOLINT

constexpr int kTile = 16;  // lanes handled together; divides a slice
constexpr int kTileVecs = kTile / kLanes;

// Numbers as they are quantized: NaN is 0, and all are in the range of half.
HWY_INLINE FloatV LoadFinite(const float* x) {
  const Floats d;
  const FloatV v = hn::LoadU(d, x);
  return hn::Clamp(hn::IfThenElseZero(hn::Eq(v, v), v), hn::Set(d, -65504.0f),
                   hn::Set(d, 65504.0f));
}

// Scale and zero point of a group, stored, and as they are read back.
struct ScaleOf {
  float scale, zero;
};
HWY_INLINE ScaleOf StoreScale(float min, float max, int levels, Half* scale,
                              Half* zero) {
  *zero = ToHalf(min);
  *scale = ToHalf(std::min((max - min) / static_cast<float>(levels), 65504.0f));
  return {ToFloat(*scale), ToFloat(*zero)};
}

// Codes of x with a scale and a zero point for each lane. A scale of 0 has
// codes 0.
HWY_INLINE WordV CodesOf(FloatV x, FloatV scale, FloatV zero, float levels) {
  const Floats d;
  const FloatV steps = hn::Div(hn::Sub(x, zero), scale);
  const FloatV code = hn::Clamp(steps, hn::Zero(d), hn::Set(d, levels));
  return hn::BitCast(Words(), hn::NearestInt(hn::IfThenZeroElse(
                                  hn::Eq(scale, hn::Zero(d)), code)));
}

// Ors codes of inner row `inner` into `unit` (lane offset included).
template <int kBits>
HWY_INLINE void OrCodes(WordV codes, int inner, uint32_t* unit) {
  const Words d;
  Unroll<NumPlanes(kBits)>([&](auto plane) KVMIX_KERNEL_LAMBDA {
    constexpr int kWidth = PlaneWidth(kBits, plane);
    constexpr int kStart = PlaneStart(kBits, plane);
    const int bit = 8 * (inner % 4) + kWidth * (inner / 4 % (8 / kWidth));
    uint32_t* word =
        unit + (kStart + inner / (32 / kWidth)) * LaneBlock::kSlice;
    const WordV part = hn::ShiftLeftSame(
        hn::And(hn::ShiftRight<kStart>(codes), hn::Set(d, (1u << kWidth) - 1)),
        bit);
    hn::StoreU(hn::Or(hn::LoadU(d, word), part), d, word);
  });
}

template <int kBits>
class Encoder {
 public:
  Encoder(const LaneBlock& format, uint8_t* block)
      : format_(format),
        block_(block),
        scales_(const_cast<Half*>(format.scales(block))),
        zeros_(const_cast<Half*>(format.zeros(block))) {}

  // A group of lanes [lane, lane + group) of one inner row.
  HWY_INLINE void AlongLanes(const float* x, int lane, int inner) {
    const Floats d;
    FloatV low = LoadFinite(x), high = low;
    for (int i = kLanes; i < format_.group; i += kLanes) {
      const FloatV v = LoadFinite(x + i);
      low = hn::Min(low, v);
      high = hn::Max(high, v);
    }
    const int group = lane / format_.group * format_.inner + inner;
    const ScaleOf s = StoreScale(hn::GetLane(hn::MinOfLanes(d, low)),
                                 hn::GetLane(hn::MaxOfLanes(d, high)), kLevels,
                                 scales_ + group, zeros_ + group);
    const FloatV scale = hn::Set(d, s.scale), zero = hn::Set(d, s.zero);
    for (int i = 0; i < format_.group; i += kLanes)
      OrCodes<kBits>(CodesOf(LoadFinite(x + i), scale, zero, kLevels),
                     inner % LaneBlock::kUnit, UnitAt(lane + i, inner));
  }

  // Inner rows [inner, inner + group) of lanes [lane + from, lane + to), at
  // most kTile of them.
  void AlongInner(const float* x, int64_t stride, int lane, int inner, int from,
                  int to) {
    const Floats d;
    alignas(64) float row[kTile], low[kTile], high[kTile];
    for (int i = 0; i < format_.group; ++i) {
      LoadRow(x + i * stride, from, to, row);
      for (int v = 0; v < kTile; v += kLanes) {
        const FloatV next = hn::Load(d, row + v);
        hn::Store(i == 0 ? next : hn::Min(next, hn::Load(d, low + v)), d,
                  low + v);
        hn::Store(i == 0 ? next : hn::Max(next, hn::Load(d, high + v)), d,
                  high + v);
      }
    }
    alignas(64) float scale[kTile] = {}, zero[kTile] = {};
    const int groups = inner / format_.group * format_.lanes + lane;
    for (int l = from; l < to; ++l) {
      const ScaleOf s = StoreScale(low[l], high[l], kLevels,
                                   scales_ + groups + l, zeros_ + groups + l);
      scale[l] = s.scale;
      zero[l] = s.zero;
    }
    // Other lanes have scale 0, so that their codes are 0.
    for (int i = 0; i < format_.group; ++i) {
      LoadRow(x + i * stride, from, to, row);
      for (int v = 0; v < kTile; v += kLanes)
        OrCodes<kBits>(CodesOf(hn::Load(d, row + v), hn::Load(d, scale + v),
                               hn::Load(d, zero + v), kLevels),
                       (inner + i) % LaneBlock::kUnit,
                       UnitAt(lane + v, inner + i));
    }
  }

 private:
  static constexpr int kLevels = (1 << kBits) - 1;

  // Lanes [from, to) of a row, which begins with lane `from`.
  static HWY_INLINE void LoadRow(const float* x, int from, int to, float* row) {
    const Floats d;
    if (to - from == kTile) {
      for (int v = 0; v < kTile; v += kLanes)
        hn::Store(LoadFinite(x + v), d, row + v);
      return;
    }
    alignas(64) float lanes[kTile] = {};
    std::copy_n(x, to - from, lanes + from);
    for (int v = 0; v < kTile; v += kLanes)
      hn::Store(LoadFinite(lanes + v), d, row + v);
  }

  uint32_t* UnitAt(int lane, int inner) const {
    return const_cast<uint32_t*>(
               format_.slice(block_, lane / LaneBlock::kSlice)) +
           inner / LaneBlock::kUnit * format_.unit_words() +
           lane % LaneBlock::kSlice;
  }

  const LaneBlock& format_;
  uint8_t* block_;
  Half* scales_;
  Half* zeros_;
};

template <int kBits>
void EncodePart(const LaneBlock& format, const LanePart& part, const float* x,
                int64_t stride, uint8_t* block) {
  Encoder<kBits> encoder(format, block);
  const int end = part.first_lane + part.num_lanes;
  if (format.groups_along_lanes) {
    for (int i = 0; i < part.num_inner; ++i)
      for (int lane = part.first_lane; lane < end; lane += format.group)
        encoder.AlongLanes(x + i * stride + (lane - part.first_lane), lane,
                           part.first_inner + i);
    return;
  }
  for (int tile = part.first_lane / kTile * kTile; tile < end; tile += kTile) {
    const int from = std::max(part.first_lane - tile, 0);
    const int to = std::min(end - tile, kTile);
    for (int i = 0; i < part.num_inner; i += format.group)
      encoder.AlongInner(x + i * stride + (tile + from - part.first_lane),
                         stride, tile, part.first_inner + i, from, to);
  }
}

// A unit of one tile of lanes, [kUnit, kTile].
template <int kBits>
HWY_INLINE void DecodeTile(const LaneBlock& format, const uint8_t* block,
                           int lane, int unit, float* x, int64_t stride) {
  const Floats d;
  const FloatV table = CodeTable<kBits>();
  const int first = unit * LaneBlock::kUnit;
  const bool along = format.groups_along_lanes;
  const int64_t group = along ? lane / format.group * format.inner + first
                              : first / format.group * format.lanes + lane;
  const Half* scales = format.scales(block) + group;
  const Half* zeros = format.zeros(block) + group;
  alignas(64) float scale[LaneBlock::kUnit], zero[LaneBlock::kUnit];
  for (int i = 0; i < LaneBlock::kUnit; i += kLanes) {
    if (!along && i >= kTile) break;
    hn::Store(LoadHalf(scales + i), d, scale + i);
    hn::Store(LoadHalf(zeros + i), d, zero + i);
  }
  const uint32_t* words = format.slice(block, lane / LaneBlock::kSlice) +
                          unit * format.unit_words() + lane % LaneBlock::kSlice;
  for (int v = 0; v < kTile; v += kLanes) {
    Unroll<LaneBlock::kUnit>([&](auto i) KVMIX_KERNEL_LAMBDA {
      const FloatV code = FloatCode<kBits, i>(table, words + v);
      const FloatV s = along ? hn::Set(d, scale[i]) : hn::Load(d, scale + v);
      const FloatV z = along ? hn::Set(d, zero[i]) : hn::Load(d, zero + v);
      // Fused or not makes no difference: code * scale is exact in float.
      hn::StoreU(hn::MulAdd(code, s, z), d, x + i * stride + v);
    });
  }
}

template <int kBits>
void DecodePart(const LaneBlock& format, const LanePart& part,
                const uint8_t* block, float* x, int64_t stride) {
  const int lane_end = part.first_lane + part.num_lanes;
  const int inner_end = part.first_inner + part.num_inner;
  alignas(64) float all[LaneBlock::kUnit * kTile];
  for (int unit = part.first_inner / LaneBlock::kUnit;
       unit * LaneBlock::kUnit < inner_end; ++unit) {
    const int first = std::max(part.first_inner - unit * LaneBlock::kUnit, 0);
    const int last =
        std::min(inner_end - unit * LaneBlock::kUnit, LaneBlock::kUnit);
    for (int lane = part.first_lane / kTile * kTile; lane < lane_end;
         lane += kTile) {
      const int from = std::max(part.first_lane - lane, 0);
      const int to = std::min(lane_end - lane, kTile);
      float* out =
          x + (unit * LaneBlock::kUnit + first - part.first_inner) * stride +
          (lane + from - part.first_lane);
      if (last - first == LaneBlock::kUnit && to - from == kTile) {
        DecodeTile<kBits>(format, block, lane, unit, out, stride);
        continue;
      }
      DecodeTile<kBits>(format, block, lane, unit, all, kTile);
      for (int i = first; i < last; ++i)
        std::copy_n(all + i * kTile + from, to - from,
                    out + (i - first) * stride);
    }
  }
}

// function<format.bits>(format, args...)
#define KVMIX_FOR_BITS(function, bits, ...) \
  do {                                      \
    switch (bits) {                         \
      case 1:                               \
        return function<1>(__VA_ARGS__);    \
      case 2:                               \
        return function<2>(__VA_ARGS__);    \
      case 3:                               \
        return function<3>(__VA_ARGS__);    \
      case 4:                               \
        return function<4>(__VA_ARGS__);    \
      case 5:                               \
        return function<5>(__VA_ARGS__);    \
      case 6:                               \
        return function<6>(__VA_ARGS__);    \
      case 7:                               \
        return function<7>(__VA_ARGS__);    \
      default:                              \
        return function<8>(__VA_ARGS__);    \
    }                                       \
  } while (false)

void EncodeLanesImpl(const LaneBlock& format, const LanePart& part,
                     const float* x, int64_t stride, uint8_t* block) {
  KVMIX_FOR_BITS(EncodePart, format.bits, format, part, x, stride, block);
}

void DecodeLanesImpl(const LaneBlock& format, const LanePart& part,
                     const uint8_t* block, float* x, int64_t stride) {
  KVMIX_FOR_BITS(DecodePart, format.bits, format, part, block, x, stride);
}
#undef KVMIX_FOR_BITS

}  // namespace HWY_NAMESPACE
}  // namespace kvmix
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvmix {

HWY_EXPORT(EncodeLanesImpl);
HWY_EXPORT(DecodeLanesImpl);

void EncodeLanes(const LaneBlock& format, const LanePart& part, const float* x,
                 int64_t stride, uint8_t* block) {
  HWY_DYNAMIC_DISPATCH(EncodeLanesImpl)(format, part, x, stride, block);
}

void DecodeLanes(const LaneBlock& format, const LanePart& part,
                 const uint8_t* block, float* x, int64_t stride) {
  HWY_DYNAMIC_DISPATCH(DecodeLanesImpl)(format, part, block, x, stride);
}

}  // namespace kvmix
#endif  // HWY_ONCE
