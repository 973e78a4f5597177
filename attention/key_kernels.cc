// Scores: products of queries with keys, lanes are tokens.
#include <algorithm>
#include <cstdint>

#include "attention/packed_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/key_kernels.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "attention/packed_kernels-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvmix {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;
using namespace packed;  // NOLINT

// Queries as the codes of a run's blocks meet them, for keys PER_CHANNEL: times
// the scales of the channels, in float, or rounded to bytes with one step for
// all blocks. `constant` is what the zero points, and the rounding at the
// middle code, add to every score. Index of block b and row r: b * kRows + r.
template <int kRows>
struct BlockQueries {
  alignas(64) float scaled[kMany][kMaxHeadDim];
  alignas(64) int8_t rounded[kMany][kMaxHeadDim];
  Rounding rounding;  // index: row
  alignas(64) float constant[kMany];

  template <bool kInt8>
  HWY_INLINE void Set(const LaneBlock& format, const BlockRun& run,
                      const float* queries, float middle) {
    const int per_block = format.lanes / LaneBlock::kSlice;
    const int first = run.first_slice / per_block;
    const int blocks =
        (run.first_slice + run.num_slices - 1) / per_block + 1 - first;
    const Parameters from{
        .inner = format.inner,
        .scales = format.scales(run.block + first * run.stride),
        .zeros = format.zeros(run.block + first * run.stride),
        .stride = run.stride / static_cast<int64_t>(sizeof(Half))};
    if constexpr (kInt8) FindSteps(from, blocks, queries);
    ManyVectors constants;
    for (int b = 0; b < blocks; ++b) {
      if constexpr (kInt8) {
        Round(from, b, queries, middle, constants);
      } else {
        Scale(from, b, queries, constants);
      }
    }
    ReduceMany(AddOp(), constants, blocks * kRows, constant);
  }

 private:
  // Of the first block; those of the next one are `stride` halves further.
  struct Parameters {
    int inner;
    const Half* scales;
    const Half* zeros;
    int64_t stride;
  };

  // Steps from the largest scale of each channel; `scaled` of the first block
  // becomes the queries in steps.
  HWY_INLINE void FindSteps(const Parameters from, int blocks,
                            const float* queries) {
    const Floats d;
    FloatV bound[kRows];
    for (int r = 0; r < kRows; ++r) bound[r] = hn::Zero(d);
    for (int c = 0; c < from.inner; c += kLanes) {
      FloatV scale = LoadHalf(from.scales + c);
      for (int b = 1; b < blocks; ++b)
        scale = hn::Max(scale, LoadHalf(from.scales + b * from.stride + c));
      for (int r = 0; r < kRows; ++r)
        bound[r] =
            hn::Max(bound[r],
                    hn::Mul(hn::Abs(hn::LoadU(d, queries + r * from.inner + c)),
                            scale));
    }
    ManyVectors bounds;
    alignas(64) float largest[kMany] = {};
    for (int r = 0; r < kRows; ++r) bounds.Set(r, bound[r]);
    ReduceMany(MaxOp(), bounds, kRows, largest);
    rounding.Set(largest, 127);
    for (int r = 0; r < kRows; ++r) {
      const FloatV inverse = hn::Set(d, rounding.inverse[r]);
      for (int c = 0; c < from.inner; c += kLanes)
        hn::Store(hn::Mul(hn::LoadU(d, queries + r * from.inner + c), inverse),
                  d, scaled[r] + c);
    }
  }

  // Stores of bytes may change anything, for all a compiler knows: what the
  // loop needs are values of its own.
  HWY_INLINE void Round(const Parameters from, int block, const float* queries,
                        float middle, ManyVectors& constants) {
    const Floats d;
    const Half* const scales = from.scales + block * from.stride;
    const Half* const zeros = from.zeros + block * from.stride;
    const int at = block * kRows;
    // Numbers of the middle code less what the bytes make of it: the zero
    // points, and the middle code times what rounding took.
    FloatV exact[kRows];
    IntV bytes[kRows];
    const float* query[kRows];
    for (int r = 0; r < kRows; ++r) {
      exact[r] = hn::Zero(d);
      bytes[r] = hn::Zero(Ints());
      query[r] = queries + r * from.inner;
    }
    for (int c = 0; c < from.inner; c += kLanes) {
      const FloatV scale = LoadHalf(scales + c);
      const FloatV number =
          hn::MulAdd(scale, hn::Set(d, middle), LoadHalf(zeros + c));
      for (int r = 0; r < kRows; ++r) {
        const FloatV steps = hn::Mul(hn::Load(d, scaled[r] + c), scale);
        bytes[r] = hn::Add(bytes[r], RoundToBytes(steps, rounded[at + r] + c));
        exact[r] = hn::MulAdd(hn::LoadU(d, query[r] + c), number, exact[r]);
      }
    }
    for (int r = 0; r < kRows; ++r)
      constants.Set(at + r, hn::NegMulAdd(hn::ConvertTo(d, bytes[r]),
                                          hn::Set(d, middle * rounding.step[r]),
                                          exact[r]));
  }

  HWY_INLINE void Scale(const Parameters from, int block, const float* queries,
                        ManyVectors& constants) {
    const Floats d;
    const Half* const scales = from.scales + block * from.stride;
    const Half* const zeros = from.zeros + block * from.stride;
    const int at = block * kRows;
    FloatV zero_sum[kRows];
    for (int r = 0; r < kRows; ++r) zero_sum[r] = hn::Zero(d);
    for (int c = 0; c < from.inner; c += kLanes) {
      const FloatV scale = LoadHalf(scales + c);
      const FloatV zero = LoadHalf(zeros + c);
      for (int r = 0; r < kRows; ++r) {
        const FloatV q = hn::LoadU(d, queries + r * from.inner + c);
        zero_sum[r] = hn::MulAdd(q, zero, zero_sum[r]);
        hn::Store(hn::Mul(q, scale), d, scaled[at + r] + c);
      }
    }
    for (int r = 0; r < kRows; ++r) constants.Set(at + r, zero_sum[r]);
  }
};

// Keys PER_CHANNEL: scales go into the query.
template <int kBits, int kRows, bool kInt8>
void ScorePerChannel(const LaneBlock& format, const BlockRun& run,
                     const float* queries, float* scores, int64_t stride) {
  using V = std::conditional_t<kInt8, IntV, FloatV>;
  const Floats d;
  [[maybe_unused]] const FloatV table = CodeTable<kBits>();
  const int per_block = format.lanes / LaneBlock::kSlice;
  BlockQueries<kRows> own;
  own.template Set<kInt8>(format, run, queries, kMiddle<kBits>);
  const Slices slices(run, per_block);
  LinesAhead ahead(run, per_block,
                   run.num_slices * format.inner / LaneBlock::kUnit);
  int at = 0;  // of the block in `own`
  for (int i = 0; i < run.num_slices; ++i, scores += LaneBlock::kSlice) {
    if (i > 0 && slices.in_block[i] == 0) at += kRows;
    for (int v0 = 0; v0 < kSliceVecs; v0 += kSpan) {
      const uint32_t* unit =
          format.slice(slices.block[i], slices.in_block[i]) + v0 * kLanes;
      V sum[Chains(kRows)][kSpan][kRows];
      Clear<V, kRows>(sum);
      for (int c = 0; c < format.inner; c += LaneBlock::kUnit) {
        if (v0 == 0) ahead.Step();
        if constexpr (kInt8) {
          const int8_t* rows[kRows];
          for (int r = 0; r < kRows; ++r) rows[r] = own.rounded[at + r] + c;
          AddUnit<kBits, kRows, int8_t>(unit, rows, sum);
        } else {
          const float* rows[kRows];
          for (int r = 0; r < kRows; ++r) rows[r] = own.scaled[at + r] + c;
          AddUnit<kBits, kRows>(table, unit, rows, sum);
        }
        unit += format.unit_words();
      }
      for (int r = 0; r < kRows; ++r) {
        const FloatV constant = hn::Set(d, own.constant[at + r]);
        for (int v = 0; v < kSpan; ++v) {
          const V total = Total<V, kRows>(sum, v, r);
          FloatV score;
          if constexpr (kInt8) {
            score = hn::MulAdd(hn::ConvertTo(d, total),
                               hn::Set(d, own.rounding.step[r]), constant);
          } else {
            score = hn::Add(total, constant);
          }
          hn::StoreU(score, d, scores + r * stride + (v0 + v) * kLanes);
        }
      }
    }
  }
}

// Keys PER_TOKEN: a group of channels has a scale for each token.
template <int kBits, int kRows, bool kInt8>
void ScorePerToken(const LaneBlock& format, const BlockRun& run,
                   const float* queries, float* scores, int64_t stride) {
  using V = std::conditional_t<kInt8, IntV, FloatV>;
  const Floats d;
  const int D = format.inner, num_groups = D / format.group;
  // Of each group of channels: the query's sum, and the query as bytes.
  alignas(64) int8_t rounded[kRows][kMaxHeadDim];
  Rounding rounding[kRows];  // index: group
  alignas(64) float sums[kRows][kMany], left[kRows][kMany];
  for (int r = 0; r < kRows; ++r) {
    const float* query = queries + r * D;
    ManyVectors sum, max;
    for (int g = 0; g < kMany; ++g) {
      FloatV s = hn::Zero(d), m = hn::Zero(d);
      for (int c = 0; g < num_groups && c < format.group; c += kLanes) {
        const FloatV q = hn::LoadU(d, query + g * format.group + c);
        s = hn::Add(s, q);
        m = hn::Max(m, hn::Abs(q));
      }
      sum.Set(g, s);
      max.Set(g, m);
    }
    ReduceMany(AddOp(), sum, kMany, sums[r]);
    if constexpr (kInt8) {
      alignas(64) float largest[kMany];
      ReduceMany(MaxOp(), max, kMany, largest);
      rounding[r].Set(largest, 127);
      for (int g = 0; g < num_groups; ++g) {
        IntV bytes = hn::Zero(Ints());
        const FloatV inverse = hn::Set(d, rounding[r].inverse[g]);
        for (int c = g * format.group; c < (g + 1) * format.group; c += kLanes)
          bytes = hn::Add(
              bytes, RoundToBytes(hn::Mul(hn::LoadU(d, query + c), inverse),
                                  rounded[r] + c));
        sum.Set(g, hn::NegMulAdd(hn::ConvertTo(d, bytes),
                                 hn::Set(d, rounding[r].step[g]), sum.Get(g)));
      }
      ReduceMany(AddOp(), sum, kMany, left[r]);
    }
  }
  [[maybe_unused]] const FloatV table = CodeTable<kBits>();
  const int per_block = format.lanes / LaneBlock::kSlice;
  const Slices slices(run, per_block);
  LinesAhead ahead(run, per_block, run.num_slices * num_groups);
  for (int i = 0; i < run.num_slices; ++i, scores += LaneBlock::kSlice) {
    const uint8_t* block = slices.block[i];
    const int slice = slices.in_block[i];
    for (int v0 = 0; v0 < kSliceVecs; v0 += kSpan) {
      const uint32_t* unit = format.slice(block, slice) + v0 * kLanes;
      const int lane = slice * LaneBlock::kSlice + v0 * kLanes;
      FloatV total[kSpan][kRows];
      for (auto& vec : total)
        for (FloatV& v : vec) v = hn::Zero(d);
      for (int g = 0; g < num_groups; ++g) {
        if (v0 == 0) ahead.Step();
        V sum[Chains(kRows)][kSpan][kRows];
        Clear<V, kRows>(sum);
        for (int c = 0; c < format.group; c += LaneBlock::kUnit) {
          const int channel = g * format.group + c;
          if constexpr (kInt8) {
            const int8_t* rows[kRows];
            for (int r = 0; r < kRows; ++r) rows[r] = rounded[r] + channel;
            AddUnit<kBits, kRows, int8_t>(unit, rows, sum);
          } else {
            const float* rows[kRows];
            for (int r = 0; r < kRows; ++r) rows[r] = queries + r * D + channel;
            AddUnit<kBits, kRows>(table, unit, rows, sum);
          }
          unit += format.unit_words();
        }
        for (int v = 0; v < kSpan; ++v) {
          const int64_t at = int64_t{g} * format.lanes + lane + v * kLanes;
          const FloatV scale = LoadHalf(format.scales(block) + at);
          const FloatV zero = LoadHalf(format.zeros(block) + at);
          for (int r = 0; r < kRows; ++r) {
            FloatV dot;
            if constexpr (kInt8) {
              dot = hn::MulAdd(hn::ConvertTo(d, Total<V, kRows>(sum, v, r)),
                               hn::Set(d, rounding[r].step[g]),
                               hn::Set(d, kMiddle<kBits> * left[r][g]));
            } else {
              dot = Total<V, kRows>(sum, v, r);
            }
            total[v][r] = hn::MulAdd(dot, scale, total[v][r]);
            total[v][r] = hn::MulAdd(zero, hn::Set(d, sums[r][g]), total[v][r]);
          }
        }
      }
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kSpan; ++v)
          hn::StoreU(total[v][r], d, scores + r * stride + (v0 + v) * kLanes);
    }
  }
}

template <int kBits, int kRows>
void Score(const LaneBlock& format, AttentionArithmetic arithmetic,
           const BlockRun& run, const float* queries, float* scores,
           int64_t stride) {
  if constexpr (kBits <= 4) {
    if (arithmetic == AttentionArithmetic::kInt8) {
      return format.groups_along_lanes
                 ? ScorePerChannel<kBits, kRows, true>(format, run, queries,
                                                       scores, stride)
                 : ScorePerToken<kBits, kRows, true>(format, run, queries,
                                                     scores, stride);
    }
  }
  return format.groups_along_lanes ? ScorePerChannel<kBits, kRows, false>(
                                         format, run, queries, scores, stride)
                                   : ScorePerToken<kBits, kRows, false>(
                                         format, run, queries, scores, stride);
}

// KVmix's words: lanes are channels, and the sums over channels come last.
template <int kRows>
void ScoreElevensOf(const ElevenBlock& format, const BlockRun& blocks,
                    int num_blocks, const float* queries, float* scores,
                    int64_t stride) {
  constexpr int kTokens = ElevenBlock::kTokens;
  const Floats d;
  const int D = format.head_dim;
  [[maybe_unused]] const FloatV table = CodeTable<3>();
  for (int b = 0; b < num_blocks; ++b) {
    const uint8_t* block = blocks.block + b * blocks.stride;
    if (blocks.ahead != 0) PrefetchLines(block + blocks.ahead, format.bytes());
    const auto* words = reinterpret_cast<const uint32_t*>(block);
    const auto* scales = reinterpret_cast<const Half*>(words + D);
    const Half* zeros = scales + D;
    FloatV sum[kTokens][kRows], zero_sum[kRows];
    for (auto& token : sum)
      for (FloatV& v : token) v = hn::Zero(d);
    for (FloatV& v : zero_sum) v = hn::Zero(d);
    for (int c = 0; c < D; c += kLanes) {
      const WordV word = hn::LoadU(Words(), words + c);
      const FloatV scale = LoadHalf(scales + c), zero = LoadHalf(zeros + c);
      FloatV scaled[kRows];
      for (int r = 0; r < kRows; ++r) {
        const FloatV q = hn::LoadU(d, queries + r * D + c);
        scaled[r] = hn::Mul(q, scale);
        zero_sum[r] = hn::MulAdd(q, zero, zero_sum[r]);
      }
      Unroll<kTokens>([&](auto t) KVMIX_KERNEL_LAMBDA {
        const WordV index = Shifted<3 * t>(word);
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
        FloatV code = LookUp(table, index);
#else
        FloatV code = hn::ConvertTo(
            d, hn::BitCast(Ints(), hn::And(index, hn::Set(Words(), 7u))));
#endif
        if constexpr (t == kTokens - 1)
          code = hn::Mul(code, hn::Set(d, format.last_scale));
        for (int r = 0; r < kRows; ++r)
          sum[t][r] = hn::MulAdd(code, scaled[r], sum[t][r]);
      });
    }
    for (int r = 0; r < kRows; ++r) {
      ManyVectors sums;
      alignas(64) float total[kMany];
      for (int t = 0; t < kTokens; ++t) sums.Set(t, sum[t][r]);
      sums.Set(kTokens, zero_sum[r]);
      ReduceMany(AddOp(), sums, kTokens + 1, total);
      for (int t = 0; t < kTokens; ++t)
        scores[r * stride + b * kTokens + t] = total[t] + total[kTokens];
    }
  }
}

template <int kRows, class T>
void ScoreNumbers(const T* page, int head_dim, int64_t ahead,
                  const float* queries, float* scores, int64_t stride) {
  const Floats d;
  for (int v0 = 0; v0 < kSliceVecs; v0 += kSpan) {
    FloatV sum[Chains(kRows)][kSpan][kRows];
    Clear<FloatV, kRows>(sum);
    const T* channel = page + v0 * kLanes;
    for (int c = 0; c < head_dim; c += Chains(kRows)) {
      for (int chain = 0; chain < Chains(kRows); ++chain) {
        if (v0 == 0 && ahead != 0)
          PrefetchLines(reinterpret_cast<const char*>(channel) + ahead,
                        kSliceTokens * sizeof(T));
        FloatV key[kSpan];
        for (int v = 0; v < kSpan; ++v)
          key[v] = LoadNumbers(d, channel + v * kLanes);
        for (int r = 0; r < kRows; ++r) {
          const FloatV q = hn::Set(d, queries[r * head_dim + c + chain]);
          for (int v = 0; v < kSpan; ++v)
            sum[chain][v][r] = hn::MulAdd(key[v], q, sum[chain][v][r]);
        }
        channel += kSliceTokens;
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kSpan; ++v)
        hn::StoreU(Total<FloatV, kRows>(sum, v, r), d,
                   scores + r * stride + (v0 + v) * kLanes);
  }
}

void ScoreBlocksImpl(const LaneBlock& format, AttentionArithmetic arithmetic,
                     const BlockRun& run, const float* queries, int rows,
                     float* scores, int64_t stride) {
  ForRows(rows, [&](auto k, int first) HWY_ATTR {
    const float* q = queries + first * format.inner;
    float* out = scores + first * stride;
    const BlockRun part = first == 0 ? run : WithoutPrefetch(run);
    switch (format.bits) {
      case 2:
        return Score<2, k>(format, arithmetic, part, q, out, stride);
      case 3:
        return Score<3, k>(format, arithmetic, part, q, out, stride);
      case 4:
        return Score<4, k>(format, arithmetic, part, q, out, stride);
      case 8:
        return Score<8, k>(format, arithmetic, part, q, out, stride);
    }
  });
}

void ScoreElevensImpl(const ElevenBlock& format, const BlockRun& blocks,
                      int num_blocks, const float* queries, int rows,
                      float* scores, int64_t stride) {
  int r = 0;
  for (; r + 2 <= rows; r += 2)
    ScoreElevensOf<2>(format, blocks, num_blocks, queries + r * format.head_dim,
                      scores + r * stride, stride);
  if (r < rows)
    ScoreElevensOf<1>(format, blocks, num_blocks, queries + r * format.head_dim,
                      scores + r * stride, stride);
}

template <class T>
void ScorePageOf(const T* page, int head_dim, int64_t ahead,
                 const float* queries, int rows, float* scores,
                 int64_t stride) {
  ForRows(rows, [&](auto k, int first) HWY_ATTR {
    ScoreNumbers<k>(page, head_dim, first == 0 ? ahead : 0,
                    queries + first * head_dim, scores + first * stride,
                    stride);
  });
}

void ScorePageImpl(NumberType type, const void* page, int head_dim,
                   int64_t ahead, const float* queries, int rows, float* scores,
                   int64_t stride) {
  VisitNumbers(type, page, [=](const auto* keys) {
    ScorePageOf(keys, head_dim, ahead, queries, rows, scores, stride);
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvmix
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvmix {

HWY_EXPORT(ScoreBlocksImpl);
HWY_EXPORT(ScoreElevensImpl);
HWY_EXPORT(ScorePageImpl);

void ScoreBlocks(const LaneBlock& format, AttentionArithmetic arithmetic,
                 const BlockRun& run, const float* queries, int rows,
                 float* scores, int64_t stride) {
  HWY_DYNAMIC_DISPATCH(ScoreBlocksImpl)
  (format, arithmetic, run, queries, rows, scores, stride);
}

void ScoreElevens(const ElevenBlock& format, const BlockRun& blocks,
                  int num_blocks, const float* queries, int rows, float* scores,
                  int64_t stride) {
  HWY_DYNAMIC_DISPATCH(ScoreElevensImpl)
  (format, blocks, num_blocks, queries, rows, scores, stride);
}

void ScorePage(NumberType type, const void* page, int head_dim, int64_t ahead,
               const float* queries, int rows, float* scores, int64_t stride) {
  HWY_DYNAMIC_DISPATCH(ScorePageImpl)
  (type, page, head_dim, ahead, queries, rows, scores, stride);
}

bool HasBlockKernel(const LaneBlock& format) {
  return (format.bits == 2 || format.bits == 3 || format.bits == 4 ||
          format.bits == 8) &&
         std::max(format.lanes, format.inner) <= HWY_NAMESPACE::kMaxHeadDim;
}

bool HasInt8Kernel(const LaneBlock& format) {
  return HasBlockKernel(format) && format.bits <= 4;
}

}  // namespace kvmix
#endif  // HWY_ONCE
