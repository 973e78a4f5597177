#include "models/weight_kernels.h"

#include <algorithm>
#include <cstring>

#include "models/matmul.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/weight_kernels.cc"
// clang-format off
#include "hwy/foreach_target.h"  // before the others
#include "hwy/cache_control.h"
#include "hwy/highway.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace kvmix::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, 16>;
using Words = hn::Rebind<uint32_t, Floats>;
using Ints = hn::Rebind<int32_t, Floats>;
using FloatVec = hn::Vec<Floats>;
using WordVec = hn::Vec<Words>;
using IntVec = hn::Vec<Ints>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Floats()));
constexpr int kVectors = static_cast<int>(kPanelOutputs) / kLanes;
// How far ahead of its use memory is asked for.
constexpr int64_t kPrefetchBytes = 8192;

HWY_INLINE void PrefetchBytes(const uint8_t* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64)
    hwy::Prefetch(from + kPrefetchBytes + i);
}

HWY_INLINE FloatVec LoadScales(const Half* p) {
  const hn::Rebind<hwy::float16_t, Floats> d;
  return hn::PromoteTo(
      Floats(), hn::LoadU(d, reinterpret_cast<const hwy::float16_t*>(p)));
}
HWY_INLINE FloatVec LoadScales(const float* p) {
  return hn::LoadU(Floats(), p);
}

template <int kBits_, class Scale_, bool kMin_, int kGroups_>
struct Codes {
  static constexpr int kBits = kBits_;
  using Scale = Scale_;
  static constexpr bool kMin = kMin_;
  static constexpr int kGroups = kGroups_;  // of inputs, with a scale each
  static constexpr int kZero = kMin ? 0 : kBits == 4 ? 8 : 128;
  static constexpr int kPerWord = 32 / kBits;
  static constexpr int kWords = 32 / kPerWord;
  static constexpr int64_t kScales = kGroups * kPanelOutputs;
  static constexpr int64_t kWordOffset =
      kScales * static_cast<int64_t>(sizeof(Scale)) * (kMin ? 2 : 1);
  static constexpr int64_t kBytes = kWordOffset + kWords * kPanelOutputs * 4;

  static HWY_INLINE FloatVec D(const uint8_t* block, int group, int v) {
    return LoadScales(reinterpret_cast<const Scale*>(block) +
                      group * kPanelOutputs + v * kLanes);
  }
  static HWY_INLINE FloatVec M(const uint8_t* block, int v) {
    return LoadScales(reinterpret_cast<const Scale*>(block) + kScales +
                      v * kLanes);
  }
  static HWY_INLINE WordVec Word(const uint8_t* block, int i, int v) {
    return hn::LoadU(Words(),
                     reinterpret_cast<const uint32_t*>(block + kWordOffset) +
                         i * kPanelOutputs + v * kLanes);
  }
  // Code j of a word.
  template <int j>
  static HWY_INLINE IntVec Code(WordVec word) {
    constexpr int kShift = kBits == 8 ? 8 * j : j < 4 ? 8 * j : 8 * j - 28;
    const WordVec q = hn::And(hn::ShiftRight<kShift>(word),
                              hn::Set(Words(), (1u << kBits) - 1));
    return hn::BitCast(Ints(), q);
  }
  template <int j>
  static HWY_INLINE FloatVec Weight(WordVec word, FloatVec d, FloatVec m) {
    IntVec q = Code<j>(word);
    if constexpr (kZero != 0) q = hn::Sub(q, hn::Set(Ints(), kZero));
    const FloatVec product = hn::Mul(hn::ConvertTo(Floats(), q), d);
    // Two roundings, as in ggml_blocks.cc: the build forbids contraction here.
    return kMin ? hn::Add(product, m) : product;
  }
};

using Nibbles = Codes<4, Half, false, 1>;
using NibblesMin = Codes<4, Half, true, 1>;
using NibblesMinFloat = Codes<4, float, true, 1>;
using Bytes = Codes<8, Half, false, 1>;
using BytesMin = Codes<8, Half, true, 1>;
using BytesMinFloat = Codes<8, float, true, 1>;
using BytesHalfBlocks = Codes<8, float, false, 2>;

// Calls f(L{}) with the type of a layout of codes.
#define KVMIX_WITH_CODES(layout, f)      \
  switch (layout) {                      \
    case WeightLayout::kNibbles:         \
      return f<Nibbles>;                 \
    case WeightLayout::kNibblesMin:      \
      return f<NibblesMin>;              \
    case WeightLayout::kNibblesMinFloat: \
      return f<NibblesMinFloat>;         \
    case WeightLayout::kBytes:           \
      return f<Bytes>;                   \
    case WeightLayout::kBytesMin:        \
      return f<BytesMin>;                \
    case WeightLayout::kBytesMinFloat:   \
      return f<BytesMinFloat>;           \
    case WeightLayout::kBytesHalfBlocks: \
      return f<BytesHalfBlocks>;         \
    default:                             \
      break;                             \
  }

// ---- Decoding to float

template <class L, int j>
HWY_INLINE void DecodeWord(WordVec word, FloatVec d, FloatVec m, float* out) {
  hn::StoreU(L::template Weight<j>(word, d, m), Floats(),
             out + j * kPanelOutputs);
  if constexpr (j + 1 < L::kPerWord) DecodeWord<L, j + 1>(word, d, m, out);
}

template <class L>
void DecodeCodes(const uint8_t* block, int64_t num_blocks, float* out) {
  constexpr int kWordsPerGroup = L::kWords / L::kGroups;
  for (int64_t b = 0; b < num_blocks; ++b) {
    for (int v = 0; v < kVectors; ++v) {
      FloatVec m = hn::Zero(Floats());
      if constexpr (L::kMin) m = L::M(block, v);
      for (int i = 0; i < L::kWords; ++i) {
        DecodeWord<L, 0>(L::Word(block, i, v),
                         L::D(block, i / kWordsPerGroup, v), m,
                         out + i * L::kPerWord * kPanelOutputs + v * kLanes);
      }
    }
    block += L::kBytes;
    out += kBlockInputs * kPanelOutputs;
  }
}

void DecodeFloat16(const uint8_t* block, int64_t num_blocks, float* out) {
  const auto* from = reinterpret_cast<const Half*>(block);
  const int64_t size = num_blocks * kBlockInputs * kPanelOutputs;
  for (int64_t i = 0; i < size; i += kLanes)
    hn::StoreU(LoadScales(from + i), Floats(), out + i);
}

HWY_INLINE FloatVec Even(WordVec pair) {
  return hn::BitCast(Floats(), hn::ShiftLeft<16>(pair));
}
HWY_INLINE FloatVec Odd(WordVec pair) {
  return hn::BitCast(Floats(), hn::And(pair, hn::Set(Words(), 0xffff0000u)));
}

void DecodeBFloat16(const uint8_t* block, int64_t num_blocks, float* out) {
  const auto* from = reinterpret_cast<const uint32_t*>(block);
  for (int64_t i = 0; i < num_blocks * kBlockInputs / 2; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      const WordVec pair = hn::LoadU(Words(), from + v * kLanes);
      hn::StoreU(Even(pair), Floats(), out + v * kLanes);
      hn::StoreU(Odd(pair), Floats(), out + kPanelOutputs + v * kLanes);
    }
    from += kPanelOutputs;
    out += 2 * kPanelOutputs;
  }
}

using DecodeFunction = void (*)(const uint8_t*, int64_t, float*);
DecodeFunction DecoderOf(WeightLayout layout) {
  if (layout == WeightLayout::kFloat16) return &DecodeFloat16;
  if (layout == WeightLayout::kBFloat16) return &DecodeBFloat16;
  KVMIX_WITH_CODES(layout, &DecodeCodes)
  return nullptr;
}

void Decode(WeightLayout layout, const uint8_t* blocks, int64_t num_blocks,
            float* out) {
  DecoderOf(layout)(blocks, num_blocks, out);
}

// ---- Float products of few rows: weights are decoded in registers

// The weights of several successive inputs of vector v, in order.
template <int kRows>
struct FewRows {
  const float* x[kRows];
  FloatVec sum[kRows][kVectors];

  HWY_INLINE void Add(int64_t k, int v, FloatVec weights) {
    for (int r = 0; r < kRows; ++r) {
      sum[r][v] = hn::MulAdd(hn::Set(Floats(), x[r][k]), weights, sum[r][v]);
    }
  }
};

template <class L, int j, int kRows>
HWY_INLINE void AddWord(const WordVec (&word)[kVectors],
                        const FloatVec (&d)[kVectors],
                        const FloatVec (&m)[kVectors], int64_t k,
                        FewRows<kRows>& rows) {
  for (int v = 0; v < kVectors; ++v)
    rows.Add(k + j, v, L::template Weight<j>(word[v], d[v], m[v]));
  if constexpr (j + 1 < L::kPerWord) AddWord<L, j + 1>(word, d, m, k, rows);
}

template <class L>
struct AddCodesBlock {
  static constexpr int64_t kBytes = L::kBytes;
  template <int kRows>
  static HWY_INLINE void Add(const uint8_t* block, int64_t k,
                             FewRows<kRows>& rows) {
    constexpr int kWordsPerGroup = L::kWords / L::kGroups;
    FloatVec m[kVectors], d[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (L::kMin) {
        m[v] = L::M(block, v);
      } else {
        m[v] = hn::Zero(Floats());
      }
    }
    for (int i = 0; i < L::kWords; ++i) {
      WordVec word[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        if (i % kWordsPerGroup == 0) d[v] = L::D(block, i / kWordsPerGroup, v);
        word[v] = L::Word(block, i, v);
      }
      AddWord<L, 0>(word, d, m, k + i * L::kPerWord, rows);
    }
  }
};

struct AddFloat16Block {
  static constexpr int64_t kBytes = 2048;
  template <int kRows>
  static HWY_INLINE void Add(const uint8_t* block, int64_t k,
                             FewRows<kRows>& rows) {
    const auto* from = reinterpret_cast<const Half*>(block);
    for (int i = 0; i < kBlockInputs; ++i) {
      for (int v = 0; v < kVectors; ++v)
        rows.Add(k + i, v, LoadScales(from + i * kPanelOutputs + v * kLanes));
    }
  }
};

struct AddBFloat16Block {
  static constexpr int64_t kBytes = 2048;
  template <int kRows>
  static HWY_INLINE void Add(const uint8_t* block, int64_t k,
                             FewRows<kRows>& rows) {
    const auto* from = reinterpret_cast<const uint32_t*>(block);
    for (int i = 0; i < kBlockInputs / 2; ++i) {
      for (int v = 0; v < kVectors; ++v) {
        const WordVec pair =
            hn::LoadU(Words(), from + i * kPanelOutputs + v * kLanes);
        rows.Add(k + 2 * i, v, Even(pair));
        rows.Add(k + 2 * i + 1, v, Odd(pair));
      }
    }
  }
};

template <class AddBlock, int kRows>
void MultiplyFew(const float* x, int64_t x_stride, const uint8_t* block,
                 int64_t num_blocks, float* HWY_RESTRICT c, int64_t c_stride) {
  FewRows<kRows> rows;
  for (int r = 0; r < kRows; ++r) {
    rows.x[r] = x + r * x_stride;
    for (int v = 0; v < kVectors; ++v)
      rows.sum[r][v] = hn::LoadU(Floats(), c + r * c_stride + v * kLanes);
  }
  for (int64_t b = 0; b < num_blocks; ++b) {
    PrefetchBytes(block, AddBlock::kBytes);
    AddBlock::Add(block, b * kBlockInputs, rows);
    block += AddBlock::kBytes;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v)
      hn::StoreU(rows.sum[r][v], Floats(), c + r * c_stride + v * kLanes);
  }
}

// Takes rows while at least kRows are left.
template <class AddBlock, int kRows>
void TakeFewRows(const float* x, int64_t x_stride, int64_t num_rows,
                 const uint8_t* blocks, int64_t num_blocks, float* c,
                 int64_t c_stride, int64_t& row) {
  for (; num_rows - row >= kRows; row += kRows) {
    MultiplyFew<AddBlock, kRows>(x + row * x_stride, x_stride, blocks,
                                 num_blocks, c + row * c_stride, c_stride);
  }
}

template <class AddBlock>
void MultiplyAllFew(const float* x, int64_t x_stride, int64_t num_rows,
                    const uint8_t* blocks, int64_t num_blocks, float* c,
                    int64_t c_stride) {
  int64_t row = 0;
  const auto take = [&]<int kRows>() {
    TakeFewRows<AddBlock, kRows>(x, x_stride, num_rows, blocks, num_blocks, c,
                                 c_stride, row);
  };
  if constexpr (kVectors <= 2) take.template operator()<8>();
  take.template operator()<4>();
  take.template operator()<3>();
  take.template operator()<2>();
  take.template operator()<1>();
}

template <class L>
constexpr auto MultiplyAllFewCodes = &MultiplyAllFew<AddCodesBlock<L>>;

using FewFunction = void (*)(const float*, int64_t, int64_t, const uint8_t*,
                             int64_t, float*, int64_t);
FewFunction FewOf(WeightLayout layout) {
  if (layout == WeightLayout::kFloat16) return &MultiplyAllFew<AddFloat16Block>;
  if (layout == WeightLayout::kBFloat16)
    return &MultiplyAllFew<AddBFloat16Block>;
  KVMIX_WITH_CODES(layout, MultiplyAllFewCodes)
  return nullptr;
}

void FloatFewRows(WeightLayout layout, const float* x, int64_t x_stride,
                  int64_t num_rows, const uint8_t* blocks, int64_t num_blocks,
                  float* c, int64_t c_stride) {
  FewOf(layout)(x, x_stride, num_rows, blocks, num_blocks, c, c_stride);
}

// ---- bf16

// Bits of x rounded to bf16, in the lower half of a word.
HWY_INLINE WordVec BFloat16Bits(FloatVec x) {
  const WordVec bits = hn::BitCast(Words(), x);
  const WordVec odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(Words(), 1));
  const WordVec rounded =
      hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(Words(), 0x7fff))));
  const WordVec quiet =
      hn::Or(hn::ShiftRight<16>(bits), hn::Set(Words(), 0x40));
  return hn::IfThenElse(hn::RebindMask(Words(), hn::IsNaN(x)), quiet, rounded);
}

void RoundRowToBFloat16(const float* x, int64_t size, BFloat16* out) {
  const hn::Rebind<uint16_t, Floats> d16;
  auto* to = reinterpret_cast<uint16_t*>(out);
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const WordVec bits = BFloat16Bits(hn::LoadU(Floats(), x + i));
    hn::StoreU(hn::DemoteTo(d16, hn::BitCast(Ints(), bits)), d16, to + i);
  }
  for (; i < size; ++i) out[i] = ToBFloat16(x[i]);
}

// [2 * num_pairs][32] floats to pairs.
void FloatsToPairs(const float* from, int64_t num_pairs, uint32_t* to) {
  for (int64_t i = 0; i < num_pairs; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      const WordVec even = BFloat16Bits(hn::LoadU(Floats(), from + v * kLanes));
      const WordVec odd =
          BFloat16Bits(hn::LoadU(Floats(), from + kPanelOutputs + v * kLanes));
      hn::StoreU(hn::Or(even, hn::ShiftLeft<16>(odd)), Words(),
                 to + v * kLanes);
    }
    from += 2 * kPanelOutputs;
    to += kPanelOutputs;
  }
}

// Products of pairs of bf16, as vdpbf16ps: the odd ones first.
struct PortablePairs {
  static HWY_INLINE FloatVec Dot(FloatVec sum, WordVec w, WordVec x) {
    return hn::MulAdd(Even(w), Even(x), hn::MulAdd(Odd(w), Odd(x), sum));
  }
};
#if HWY_TARGET == HWY_AVX3_DL
// The instruction is no part of this target: the caller asks the CPU.
struct NativePairs {
  static HWY_INLINE FloatVec Dot(FloatVec sum, WordVec w, WordVec x) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum.raw) : "v"(w.raw), "v"(x.raw));
    return sum;
  }
};
inline bool HasNativePairs() {
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
}
#endif

// Rows whose sums stay in registers: 24 of 32 (AVX-512), 12 of 16 (AVX2).
constexpr int kMaxPairRows = kVectors <= 2 ? 12 : kVectors <= 4 ? 3 : 1;
// Pairs of inputs whose part of a panel (24 KiB) stays in the first-level
// cache while many rows pass over it.
constexpr int64_t kPairBlock = 192;

template <class Pairs, int kRows>
HWY_INLINE void PairRows(const uint32_t* HWY_RESTRICT x, int64_t x_stride,
                         const uint32_t* HWY_RESTRICT w, int64_t num_pairs,
                         float* HWY_RESTRICT c, int64_t c_stride) {
  FloatVec sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = hn::LoadU(Floats(), c + r * c_stride + v * kLanes);
  }
  for (int64_t i = 0; i < num_pairs; ++i) {
    if constexpr (kRows < 12)
      PrefetchBytes(reinterpret_cast<const uint8_t*>(w), 128);
    for (int v = 0; v < kVectors; ++v) {
      const WordVec weights = hn::LoadU(Words(), w + v * kLanes);
      for (int r = 0; r < kRows; ++r) {
        sum[r][v] = Pairs::Dot(sum[r][v], weights,
                               hn::Set(Words(), x[r * x_stride + i]));
      }
    }
    w += kPanelOutputs;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v)
      hn::StoreU(sum[r][v], Floats(), c + r * c_stride + v * kLanes);
  }
}

template <class Pairs, int kRows>
HWY_INLINE void TakePairRows(const uint32_t* x, int64_t x_stride,
                             int64_t num_rows, const uint32_t* w,
                             int64_t num_pairs, float* c, int64_t c_stride,
                             int64_t& row) {
  if constexpr (kRows <= kMaxPairRows) {
    for (; num_rows - row >= kRows; row += kRows) {
      PairRows<Pairs, kRows>(x + row * x_stride, x_stride, w, num_pairs,
                             c + row * c_stride, c_stride);
    }
  }
}

template <class Pairs>
void AllPairRows(const uint32_t* x, int64_t x_stride, int64_t num_rows,
                 const uint32_t* w, int64_t num_pairs, float* c,
                 int64_t c_stride) {
  const int64_t block = num_rows > kMaxPairRows ? kPairBlock : num_pairs;
  for (int64_t i = 0; i < num_pairs; i += block) {
    const int64_t pairs = std::min(block, num_pairs - i);
    const uint32_t* part = w + i * kPanelOutputs;
    int64_t row = 0;
    TakePairRows<Pairs, 12>(x + i, x_stride, num_rows, part, pairs, c, c_stride,
                            row);
    TakePairRows<Pairs, 8>(x + i, x_stride, num_rows, part, pairs, c, c_stride,
                           row);
    TakePairRows<Pairs, 4>(x + i, x_stride, num_rows, part, pairs, c, c_stride,
                           row);
    TakePairRows<Pairs, 3>(x + i, x_stride, num_rows, part, pairs, c, c_stride,
                           row);
    TakePairRows<Pairs, 2>(x + i, x_stride, num_rows, part, pairs, c, c_stride,
                           row);
    TakePairRows<Pairs, 1>(x + i, x_stride, num_rows, part, pairs, c, c_stride,
                           row);
  }
}

void BFloat16Rows(const uint32_t* x, int64_t x_stride, int64_t num_rows,
                  const uint32_t* w, int64_t num_pairs, float* c,
                  int64_t c_stride) {
#if HWY_TARGET == HWY_AVX3_DL
  if (HasNativePairs()) {
    return AllPairRows<NativePairs>(x, x_stride, num_rows, w, num_pairs, c,
                                    c_stride);
  }
#endif
  AllPairRows<PortablePairs>(x, x_stride, num_rows, w, num_pairs, c, c_stride);
}

// ---- Codes times inputs of 8 bits

// acc + the four products of unsigned bytes of w and signed bytes of x.
#if HWY_TARGET == HWY_AVX3_DL
HWY_INLINE IntVec DotBytes(IntVec acc, WordVec w, WordVec x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc.raw) : "v"(w.raw), "v"(x.raw));
  return acc;
}
#elif HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR
// pmaddwd adds neighbouring products of 16-bit numbers: even and odd bytes.
HWY_INLINE IntVec DotBytes(IntVec acc, WordVec w, WordVec x) {
  const hn::Repartition<int16_t, Floats> d16;
  const hn::Repartition<uint16_t, Floats> du16;
  const auto w16 = hn::BitCast(du16, w);
  const auto x16 = hn::BitCast(d16, x);
  const auto even = hn::BitCast(d16, hn::And(w16, hn::Set(du16, 0xff)));
  const auto odd = hn::BitCast(d16, hn::ShiftRight<8>(w16));
  IntVec unused = hn::Zero(Ints());
  acc = hn::ReorderWidenMulAccumulate(
      Ints(), even, hn::ShiftRight<8>(hn::ShiftLeft<8>(x16)), acc, unused);
  return hn::ReorderWidenMulAccumulate(Ints(), odd, hn::ShiftRight<8>(x16), acc,
                                       unused);
}
#else
template <int j>
HWY_INLINE IntVec AddByte(IntVec acc, WordVec w, WordVec x) {
  const IntVec code = hn::BitCast(
      Ints(), hn::And(hn::ShiftRight<8 * j>(w), hn::Set(Words(), 255)));
  const IntVec factor =
      hn::ShiftRight<24>(hn::BitCast(Ints(), hn::ShiftLeft<24 - 8 * j>(x)));
  return hn::Add(acc, hn::Mul(code, factor));
}
HWY_INLINE IntVec DotBytes(IntVec acc, WordVec w, WordVec x) {
  return AddByte<3>(AddByte<2>(AddByte<1>(AddByte<0>(acc, w, x), w, x), w, x),
                    w, x);
}
#endif

HWY_INLINE WordVec BroadcastWord(const int8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof(word));
  return hn::Set(Words(), word);
}

template <class L, int kRows>
void Int8Rows(const Int8Block* x, int64_t x_stride, const uint8_t* block,
              int64_t num_blocks, float* HWY_RESTRICT c, int64_t c_stride) {
  constexpr int kWordsPerGroup = L::kWords / L::kGroups;
  FloatVec sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = hn::LoadU(Floats(), c + r * c_stride + v * kLanes);
  }
  for (int64_t b = 0; b < num_blocks; ++b) {
    PrefetchBytes(block, L::kBytes);
    for (int g = 0; g < L::kGroups; ++g) {
      IntVec acc[kRows][kVectors];
      for (int r = 0; r < kRows; ++r) {
        const int32_t* sums = x[r * x_stride + b].sums;
        const int32_t codes = L::kGroups == 2 ? sums[g] : sums[0] + sums[1];
        for (int v = 0; v < kVectors; ++v)
          acc[r][v] = hn::Set(Ints(), -L::kZero * codes);
      }
      for (int i = g * kWordsPerGroup; i < (g + 1) * kWordsPerGroup; ++i) {
        for (int v = 0; v < kVectors; ++v) {
          const WordVec word = L::Word(block, i, v);
          const WordVec nibbles = hn::Set(Words(), 0x0f0f0f0fu);
          for (int r = 0; r < kRows; ++r) {
            const int8_t* codes = x[r * x_stride + b].codes;
            if constexpr (L::kBits == 8) {
              acc[r][v] =
                  DotBytes(acc[r][v], word, BroadcastWord(codes + 4 * i));
            } else {
              acc[r][v] = DotBytes(acc[r][v], hn::And(word, nibbles),
                                   BroadcastWord(codes + 8 * i));
              acc[r][v] =
                  DotBytes(acc[r][v], hn::And(hn::ShiftRight<4>(word), nibbles),
                           BroadcastWord(codes + 8 * i + 4));
            }
          }
        }
      }
      for (int v = 0; v < kVectors; ++v) {
        const FloatVec d = L::D(block, g, v);
        for (int r = 0; r < kRows; ++r) {
          const FloatVec scale =
              hn::Mul(d, hn::Set(Floats(), x[r * x_stride + b].scale));
          sum[r][v] =
              hn::MulAdd(hn::ConvertTo(Floats(), acc[r][v]), scale, sum[r][v]);
        }
      }
    }
    if constexpr (L::kMin) {
      for (int v = 0; v < kVectors; ++v) {
        const FloatVec m = L::M(block, v);
        for (int r = 0; r < kRows; ++r) {
          const Int8Block& in = x[r * x_stride + b];
          const float total =
              in.scale * static_cast<float>(in.sums[0] + in.sums[1]);
          sum[r][v] = hn::MulAdd(m, hn::Set(Floats(), total), sum[r][v]);
        }
      }
    }
    block += L::kBytes;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v)
      hn::StoreU(sum[r][v], Floats(), c + r * c_stride + v * kLanes);
  }
}

template <class L>
void AllInt8Rows(const Int8Block* x, int64_t x_stride, int64_t num_rows,
                 const uint8_t* blocks, int64_t num_blocks, float* c,
                 int64_t c_stride) {
  // Sums in integers and in float: 4 registers a row with AVX-512.
  constexpr int kRows = kVectors <= 2 ? 6 : 2;
  int64_t row = 0;
  for (; num_rows - row >= kRows; row += kRows) {
    Int8Rows<L, kRows>(x + row * x_stride, x_stride, blocks, num_blocks,
                       c + row * c_stride, c_stride);
  }
  if constexpr (kRows > 4) {
    for (; num_rows - row >= 4; row += 4) {
      Int8Rows<L, 4>(x + row * x_stride, x_stride, blocks, num_blocks,
                     c + row * c_stride, c_stride);
    }
    for (; num_rows - row >= 2; row += 2) {
      Int8Rows<L, 2>(x + row * x_stride, x_stride, blocks, num_blocks,
                     c + row * c_stride, c_stride);
    }
  }
  for (; row < num_rows; ++row) {
    Int8Rows<L, 1>(x + row * x_stride, x_stride, blocks, num_blocks,
                   c + row * c_stride, c_stride);
  }
}

using Int8Function = void (*)(const Int8Block*, int64_t, int64_t,
                              const uint8_t*, int64_t, float*, int64_t);
Int8Function Int8Of(WeightLayout layout) {
  KVMIX_WITH_CODES(layout, &AllInt8Rows)
  return nullptr;
}

void Int8AllRows(WeightLayout layout, const Int8Block* x, int64_t x_stride,
                 int64_t num_rows, const uint8_t* blocks, int64_t num_blocks,
                 float* c, int64_t c_stride) {
  Int8Of(layout)(x, x_stride, num_rows, blocks, num_blocks, c, c_stride);
}

// One block of 32 inputs.
void RoundBlockToInt8(const float* x, Int8Block* out) {
  const hn::Rebind<int8_t, Floats> d8;
  // Magnitudes as integers: a NaN is the largest.
  IntVec max_bits = hn::Zero(Ints());
  for (int i = 0; i < kBlockInputs; i += kLanes) {
    const IntVec bits = hn::BitCast(Ints(), hn::LoadU(Floats(), x + i));
    max_bits = hn::Max(max_bits, hn::And(bits, hn::Set(Ints(), 0x7fffffff)));
  }
  const float max =
      hn::GetLane(hn::BitCast(Floats(), hn::MaxOfLanes(Ints(), max_bits)));
  // Smaller numbers would have an infinite inverse.
  const bool usable = max >= 1e-30f && max <= 3e38f;
  const float inverse = usable ? 127 / max : 0;
  out->scale = usable || !(max < 1e-30f) ? max / 127 : 0;
  for (int half = 0; half < 2; ++half) {
    IntVec sum = hn::Zero(Ints());
    for (int i = 16 * half; i < 16 * (half + 1); i += kLanes) {
      IntVec codes = hn::Zero(Ints());
      if (usable) {
        codes = hn::NearestInt(
            hn::Mul(hn::LoadU(Floats(), x + i), hn::Set(Floats(), inverse)));
      }
      hn::StoreU(hn::DemoteTo(d8, codes), d8, out->codes + i);
      sum = hn::Add(sum, codes);
    }
    out->sums[half] = hn::GetLane(hn::SumOfLanes(Ints(), sum));
  }
}

void RoundRowToInt8(const float* x, int64_t size, Int8Block* out) {
  int64_t i = 0;
  for (; i + kBlockInputs <= size; i += kBlockInputs)
    RoundBlockToInt8(x + i, out++);
  if (i == size) return;
  float last[kBlockInputs] = {};
  std::copy(x + i, x + size, last);
  RoundBlockToInt8(last, out);
}

#undef KVMIX_WITH_CODES

}  // namespace kvmix::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvmix {

HWY_EXPORT(Decode);
HWY_EXPORT(FloatFewRows);
HWY_EXPORT(FloatsToPairs);
HWY_EXPORT(BFloat16Rows);
HWY_EXPORT(Int8AllRows);
HWY_EXPORT(RoundRowToBFloat16);
HWY_EXPORT(RoundRowToInt8);

namespace {

// Blocks that are decoded at a time where many rows share them: 24 KiB of
// float.
constexpr int64_t kDecodeBlocks = 6;
// Rows of float that are multiplied by weights decoded in registers at most.
constexpr int64_t kFewRows = 8;

}  // namespace

int64_t WeightBlockBytes(WeightLayout layout) {
  switch (layout) {
    case WeightLayout::kFloat32:
      return 4096;
    case WeightLayout::kFloat16:
    case WeightLayout::kBFloat16:
      return 2048;
    case WeightLayout::kNibbles:
      return 576;
    case WeightLayout::kNibblesMin:
      return 640;
    case WeightLayout::kNibblesMinFloat:
      return 768;
    case WeightLayout::kBytes:
      return 1088;
    case WeightLayout::kBytesMin:
      return 1152;
    case WeightLayout::kBytesMinFloat:
    case WeightLayout::kBytesHalfBlocks:
      return 1280;
  }
  return 0;
}

void RoundToInt8(const float* x, int64_t size, Int8Block* out) {
  HWY_DYNAMIC_DISPATCH(RoundRowToInt8)(x, size, out);
}

void RoundToBFloat16(const float* x, int64_t size, BFloat16* out) {
  HWY_DYNAMIC_DISPATCH(RoundRowToBFloat16)(x, size, out);
  const int64_t padded =
      (size + kBlockInputs - 1) / kBlockInputs * kBlockInputs;
  std::fill(out + size, out + padded, BFloat16{0});
}

void DecodePanelBlocks(WeightLayout layout, const uint8_t* blocks,
                       int64_t num_blocks, float* out) {
  if (layout == WeightLayout::kFloat32) {
    std::memcpy(out, blocks, num_blocks * WeightBlockBytes(layout));
    return;
  }
  HWY_DYNAMIC_DISPATCH(Decode)(layout, blocks, num_blocks, out);
}

void MultiplyFloat(WeightLayout layout, const float* x, int64_t x_stride,
                   int64_t num_rows, const uint8_t* blocks, int64_t inputs,
                   float* c, int64_t c_stride) {
  if (layout == WeightLayout::kFloat32) {
    MultiplyPanel({x, x_stride}, num_rows, inputs,
                  reinterpret_cast<const float*>(blocks), kPanelOutputs, c,
                  c_stride);
    return;
  }
  if (num_rows <= kFewRows && inputs % kBlockInputs == 0) {
    HWY_DYNAMIC_DISPATCH(FloatFewRows)
    (layout, x, x_stride, num_rows, blocks, inputs / kBlockInputs, c, c_stride);
    return;
  }
  alignas(128) float decoded[kDecodeBlocks * kBlockInputs * kPanelOutputs];
  for (int64_t k = 0; k < inputs; k += kDecodeBlocks * kBlockInputs) {
    const int64_t steps = std::min(kDecodeBlocks * kBlockInputs, inputs - k);
    DecodePanelBlocks(layout,
                      blocks + k / kBlockInputs * WeightBlockBytes(layout),
                      (steps + kBlockInputs - 1) / kBlockInputs, decoded);
    MultiplyPanel({x + k, x_stride}, num_rows, steps, decoded, kPanelOutputs, c,
                  c_stride);
  }
}

void MultiplyBFloat16(WeightLayout layout, const BFloat16* x, int64_t x_stride,
                      int64_t num_rows, const uint8_t* blocks,
                      int64_t num_blocks, float* c, int64_t c_stride) {
  constexpr int64_t kPairs = kBlockInputs / 2;
  const auto* const pairs = reinterpret_cast<const uint32_t*>(x);
  if (layout == WeightLayout::kBFloat16) {
    HWY_DYNAMIC_DISPATCH(BFloat16Rows)
    (pairs, x_stride / 2, num_rows, reinterpret_cast<const uint32_t*>(blocks),
     num_blocks * kPairs, c, c_stride);
    return;
  }
  alignas(128) float decoded[kDecodeBlocks * kBlockInputs * kPanelOutputs];
  alignas(128) uint32_t rounded[kDecodeBlocks * kPairs * kPanelOutputs];
  for (int64_t b = 0; b < num_blocks; b += kDecodeBlocks) {
    const int64_t count = std::min(kDecodeBlocks, num_blocks - b);
    DecodePanelBlocks(layout, blocks + b * WeightBlockBytes(layout), count,
                      decoded);
    HWY_DYNAMIC_DISPATCH(FloatsToPairs)(decoded, count * kPairs, rounded);
    HWY_DYNAMIC_DISPATCH(BFloat16Rows)
    (pairs + b * kPairs, x_stride / 2, num_rows, rounded, count * kPairs, c,
     c_stride);
  }
}

void MultiplyInt8(WeightLayout layout, const Int8Block* x, int64_t x_stride,
                  int64_t num_rows, const uint8_t* blocks, int64_t num_blocks,
                  float* c, int64_t c_stride) {
  HWY_DYNAMIC_DISPATCH(Int8AllRows)
  (layout, x, x_stride, num_rows, blocks, num_blocks, c, c_stride);
}

}  // namespace kvmix
#endif  // HWY_ONCE
