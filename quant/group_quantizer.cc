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

// Codes [first, last) one after another: the ends of groups, and targets
// without vectors.
inline void DecodeCodes(const uint32_t* words, int num_words, int bits,
                        float scale, float zero, int first, int last,
                        float* x) {
  for (int i = first; i < last; ++i)
    x[i] = static_cast<float>(UnpackCode(words, num_words, bits, i)) * scale +
           zero;
}

// Chunks [0, count) of a group. Reads whole words, unaligned.
#if HWY_TARGET == HWY_SCALAR
template <int kBits>
void DecodeChunks(const uint32_t* words, int num_words, float scale, float zero,
                  int count, float* x) {
  DecodeCodes(words, num_words, kBits, scale, zero, 0, count * kChunk, x);
}
#else
constexpr int kLanes = HWY_MIN(HWY_LANES(float), kChunk);

// Where the codes of a chunk lie in its bytes.
template <int kBits>
struct ChunkTables {
  alignas(32) uint8_t bytes[4 * kChunk];  // the four bytes that hold a code,
  alignas(32) uint32_t shifts[kChunk];    // from this bit of them on
  alignas(32) uint32_t in_word[kChunk];   // its bit, if 32 bits hold them all
  constexpr ChunkTables() : bytes(), shifts(), in_word() {
    for (int lane = 0; lane < kChunk; ++lane) {
      for (int byte = 0; byte < 4; ++byte)
        bytes[4 * lane + byte] =
            static_cast<uint8_t>(lane * kBits / 8 + byte);  // below 16
      shifts[lane] = lane * kBits % 8;
      in_word[lane] = lane * kBits % 32;
    }
  }
};
template <int kBits>
inline constexpr ChunkTables<kBits> kTables;

template <typename T>
HWY_INLINE T LoadAs(const char* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

// Codes [lane, lane + kLanes) of the chunk at `bytes`, one per lane.
template <int kBits>
HWY_INLINE hn::Vec<Words> ChunkCodes(const char* bytes, int lane) {
  const Words dw;
  const hn::Repartition<uint64_t, Floats> dq;
  const hn::Repartition<uint8_t, Floats> db;
  const auto mask = hn::Set(dw, (1u << kBits) - 1);
  if constexpr (kBits <= 4) {
    return hn::And(hn::Shr(hn::Set(dw, LoadAs<uint32_t>(bytes)),
                           hn::Load(dw, kTables<kBits>.in_word + lane)),
                   mask);
  }
  const auto chunk = hn::BitCast(db, hn::Set(dq, LoadAs<uint64_t>(bytes)));
  const auto picked = hn::TableLookupBytes(
      chunk, hn::Load(db, kTables<kBits>.bytes + 4 * lane));
  return hn::And(hn::Shr(hn::BitCast(dw, picked),
                         hn::Load(dw, kTables<kBits>.shifts + lane)),
                 mask);
}

template <int kBits>
HWY_INLINE void DecodeChunks(const uint32_t* words, int, float scale,
                             float zero, int count, float* x) {
  const Floats d;
  const Ints di;
  const auto scale_v = hn::Set(d, scale), zero_v = hn::Set(d, zero);
  const char* bytes = reinterpret_cast<const char*>(words);
  for (int i = 0; i < count; ++i, bytes += kBits, x += kChunk) {
    for (int lane = 0; lane < kChunk; lane += kLanes) {
      const auto codes = hn::BitCast(di, ChunkCodes<kBits>(bytes, lane));
      // Fused or not makes no difference: code * scale is exact in float.
      hn::StoreU(hn::MulAdd(hn::ConvertTo(d, codes), scale_v, zero_v), d,
                 x + lane);
    }
  }
}
#endif

// x [n] = half [n]
inline void ToFloats(const Half* half, int n, float* x) {
  int i = 0;
#if HWY_TARGET != HWY_SCALAR
  const Floats d;
  const hn::Rebind<hwy::float16_t, Floats> dh;
  for (; i + kLanes <= n; i += kLanes)
    hn::StoreU(
        hn::PromoteTo(
            d,
            hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(half) + i)),
        d, x + i);
#endif
  for (; i < n; ++i) x[i] = ToFloat(half[i]);
}

template <int kBits>
void DecodeGroupsOf(const GroupFormat& format, const uint32_t* words,
                    const Half* scales, const Half* zeros, int n, float* x,
                    int64_t stride) {
  constexpr int kBatch = 64;
  float scale[kBatch], zero[kBatch];
  const int size = format.size, num_words = format.words();
  const int chunks = size / kChunk;
  for (int first = 0; first < n; first += kBatch) {
    const int count = std::min(kBatch, n - first);
    ToFloats(scales + first, count, scale);
    ToFloats(zeros + first, count, zero);
    for (int i = 0; i < count; ++i, words += num_words, x += stride) {
      if (size == 4 * kChunk) {  // the usual group, unrolled
        DecodeChunks<kBits>(words, num_words, scale[i], zero[i], 4, x);
        continue;
      }
      DecodeChunks<kBits>(words, num_words, scale[i], zero[i], chunks, x);
      DecodeCodes(words, num_words, kBits, scale[i], zero[i], chunks * kChunk,
                  size, x);
    }
  }
}

// KVmix's words: a chunk, two more codes, and the last one.
void DecodeElevens(const GroupFormat& format, const uint32_t* words,
                   const Half* scales, const Half* zeros, int n, float* x,
                   int64_t stride) {
  for (int i = 0; i < n; ++i, x += stride) {
    const float scale = ToFloat(scales[i]), zero = ToFloat(zeros[i]);
    const int rest = static_cast<int>(words[i] >> 24);
    DecodeChunks<3>(words + i, 1, scale, zero, 1, x);
    x[8] = static_cast<float>(rest & 7) * scale + zero;
    x[9] = static_cast<float>(rest >> 3 & 7) * scale + zero;
    x[10] = static_cast<float>(rest >> 6) * LastScale(format, scale) + zero;
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
  const Decode decode = format.packing == QuantFormat::DENSE
                            ? kDecode[format.bits - 1]
                            : DecodeElevens;
  decode(format, words, scales, zeros, n, x, stride);
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
