#include "quant/group_quantizer.h"

#include <algorithm>
#include <bit>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/group_quantizer.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvmix {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Codes are handled eight at a time: eight codes of b bits are b whole bytes.
constexpr int kChunk = 8;
using Floats = hn::CappedTag<float, kChunk>;
using Ints = hn::RebindToSigned<Floats>;
using Words = hn::RebindToUnsigned<Floats>;

static_assert(std::endian::native == std::endian::little);

// The scale of the last code of a group, given that of the others.
inline float LastScale(const GroupFormat& format, float scale) {
  return format.packing == QuantFormat::KVMIX_3BIT_11_RESCALED
             ? scale * 7.0f / 3.0f
             : scale;
}
inline int LastLevels(const GroupFormat& format) {
  return format.packing == QuantFormat::DENSE ? (1 << format.bits) - 1 : 3;
}

// x without NaN and within the range of half, padded to whole chunks by its
// first number.
inline void Saturate(const float* x, int size, float* out) {
  const Floats d;
  const int padded = (size + kChunk - 1) / kChunk * kChunk;
  std::copy_n(x, size, out);
  std::fill(out + size, out + padded, x[0]);
  for (int i = 0; i < padded; i += static_cast<int>(hn::Lanes(d))) {
    const auto v = hn::LoadU(d, out + i);
    const auto number = hn::IfThenElseZero(hn::Eq(v, v), v);
    hn::StoreU(hn::Clamp(number, hn::Set(d, -65504.0f), hn::Set(d, 65504.0f)),
               d, out + i);
  }
}

template <typename V>
HWY_INLINE auto CodesOf(Floats d, V x, float zero, float scale, int levels) {
  const auto steps = hn::Div(hn::Sub(x, hn::Set(d, zero)), hn::Set(d, scale));
  return hn::NearestInt(
      hn::Clamp(steps, hn::Zero(d), hn::Set(d, static_cast<float>(levels))));
}

void EncodeGroup(const GroupFormat& format, const float* raw, uint32_t* words,
                 Half* scale_out, Half* zero_out) {
  const Floats d;
  const Ints di;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const int size = format.size, levels = (1 << format.bits) - 1;
  HWY_ALIGN float x[kMaxGroupSize];
  HWY_ALIGN uint32_t codes[kMaxGroupSize];
  Saturate(raw, size, x);

  auto low = hn::Load(d, x), high = low;
  for (int i = lanes; i < size; i += lanes) {
    low = hn::Min(low, hn::Load(d, x + i));
    high = hn::Max(high, hn::Load(d, x + i));
  }
  const float min = hn::GetLane(hn::MinOfLanes(d, low));
  const float max = hn::GetLane(hn::MaxOfLanes(d, high));
  *zero_out = ToHalf(min);
  *scale_out = ToHalf(std::min((max - min) / levels, 65504.0f));
  const float zero = ToFloat(*zero_out), scale = ToFloat(*scale_out);
  if (scale == 0) {
    std::fill_n(words, format.words(), 0u);
    return;
  }
  for (int i = 0; i < size; i += lanes) {
    hn::Store(CodesOf(d, hn::Load(d, x + i), zero, scale, levels), di,
              reinterpret_cast<int32_t*>(codes) + i);
  }
  if (format.packing != QuantFormat::DENSE) {
    const auto last = CodesOf(d, hn::Set(d, x[size - 1]), zero,
                              LastScale(format, scale), LastLevels(format));
    codes[size - 1] = static_cast<uint32_t>(hn::GetLane(last));
  }
  PackCodes(codes, size, format.bits, words, format.words());
}

void EncodeGroupsImpl(const GroupFormat& format, const float* x, int n,
                      uint32_t* words, Half* scales, Half* zeros) {
  for (int i = 0; i < n; ++i)
    EncodeGroup(format, x + static_cast<int64_t>(i) * format.size,
                words + static_cast<int64_t>(i) * format.words(), scales + i,
                zeros + i);
}

// One code after another: the ends of groups, and targets without vectors.
inline void DecodeCodes(const GroupFormat& format, const uint32_t* words,
                        float scale, float zero, int first, int last,
                        float* x) {
  for (int i = first; i < last; ++i)
    x[i] =
        static_cast<float>(UnpackCode(words, format.words(), format.bits, i)) *
            scale +
        zero;
}

// Chunks [0, count) of a group.
#if HWY_TARGET == HWY_SCALAR
template <int kBits>
void DecodeChunks(const GroupFormat& format, const uint32_t* words, float scale,
                  float zero, int count, float* x) {
  DecodeCodes(format, words, scale, zero, 0, count * kChunk, x);
}
#else
// Per lane of a chunk, where its code lies in the chunk's bytes: which four
// bytes, and by how many bits to shift them.
template <int kBits>
struct ChunkTables {
  alignas(32) uint8_t bytes[4 * kChunk];
  alignas(32) uint32_t shifts[kChunk];
  constexpr ChunkTables() : bytes(), shifts() {
    for (int lane = 0; lane < kChunk; ++lane) {
      for (int byte = 0; byte < 4; ++byte)
        bytes[4 * lane + byte] =
            static_cast<uint8_t>(lane * kBits / 8 + byte);  // below 16
      shifts[lane] = lane * kBits % 8;
    }
  }
};

template <int kBits>
HWY_INLINE void DecodeChunks(const GroupFormat&, const uint32_t* words,
                             float scale, float zero, int count, float* x) {
  static constexpr ChunkTables<kBits> kTables;
  const Floats d;
  const Words dw;
  const Ints di;
  const hn::Repartition<uint64_t, Floats> dq;
  const hn::Repartition<uint8_t, Floats> db;
  constexpr int kLanes = HWY_MIN(HWY_LANES(float), kChunk);
  const auto mask = hn::Set(dw, (1u << kBits) - 1);
  const auto scale_v = hn::Set(d, scale), zero_v = hn::Set(d, zero);
  const char* bytes = reinterpret_cast<const char*>(words);
  for (int i = 0; i < count; ++i, bytes += kBits, x += kChunk) {
    uint64_t chunk;
    std::memcpy(&chunk, bytes, sizeof(chunk));
    const auto chunk_v = hn::BitCast(db, hn::Set(dq, chunk));
    for (int lane = 0; lane < kChunk; lane += kLanes) {
      const auto picked =
          hn::BitCast(dw, hn::TableLookupBytes(
                              chunk_v, hn::Load(db, kTables.bytes + 4 * lane)));
      const auto code =
          hn::And(hn::Shr(picked, hn::Load(dw, kTables.shifts + lane)), mask);
      const auto steps = hn::ConvertTo(d, hn::BitCast(di, code));
      // A fused multiply-add would give the same: steps * scale is exact.
      hn::StoreU(hn::Add(hn::Mul(steps, scale_v), zero_v), d, x + lane);
    }
  }
}
#endif

template <int kBits>
void DecodeGroupsOf(const GroupFormat& format, const uint32_t* words,
                    const Half* scales, const Half* zeros, int n, float* x,
                    int64_t stride) {
  const int size = format.size;
  const int own_scale = format.packing == QuantFormat::DENSE ? 0 : 1;
  const int chunks = (size - own_scale) / kChunk;
  for (int i = 0; i < n; ++i, words += format.words(), x += stride) {
    const float scale = ToFloat(scales[i]), zero = ToFloat(zeros[i]);
    DecodeChunks<kBits>(format, words, scale, zero, chunks, x);
    DecodeCodes(format, words, scale, zero, chunks * kChunk, size - own_scale,
                x);
    DecodeCodes(format, words, LastScale(format, scale), zero, size - own_scale,
                size, x);
  }
}

void DecodeGroupsImpl(const GroupFormat& format, const uint32_t* words,
                      const Half* scales, const Half* zeros, int n, float* x,
                      int64_t stride) {
  using Decode = void (*)(const GroupFormat&, const uint32_t*, const Half*,
                          const Half*, int, float*, int64_t);
  static constexpr Decode kDecode[] = {DecodeGroupsOf<1>, DecodeGroupsOf<2>,
                                       DecodeGroupsOf<3>, DecodeGroupsOf<4>,
                                       DecodeGroupsOf<5>, DecodeGroupsOf<6>,
                                       DecodeGroupsOf<7>, DecodeGroupsOf<8>};
  kDecode[format.bits - 1](format, words, scales, zeros, n, x, stride);
}

}  // namespace HWY_NAMESPACE
}  // namespace kvmix
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvmix {

HWY_EXPORT(EncodeGroupsImpl);
HWY_EXPORT(DecodeGroupsImpl);

void EncodeGroups(const GroupFormat& format, const float* x, int n,
                  uint32_t* words, Half* scales, Half* zeros) {
  HWY_DYNAMIC_DISPATCH(EncodeGroupsImpl)(format, x, n, words, scales, zeros);
}

void DecodeGroups(const GroupFormat& format, const uint32_t* words,
                  const Half* scales, const Half* zeros, int n, float* x,
                  int64_t stride) {
  HWY_DYNAMIC_DISPATCH(DecodeGroupsImpl)
  (format, words, scales, zeros, n, x, stride);
}

}  // namespace kvmix
#endif  // HWY_ONCE
