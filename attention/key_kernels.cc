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

// Queries as the codes of a block meet them, for keys PER_CHANNEL: times the
// scales of the channels. `constant` is what the zero points add to every
// score.
template <int kRows>
struct ScaledQueries {
  struct OfBlock {
    alignas(64) float numbers[kRows][kMaxHeadDim];
    alignas(64) float constant[kMany];
  };
  void SetRun(const LaneBlock&, const BlockRun&, const float*) {}
  HWY_INLINE void SetBlock(const LaneBlock& format, const uint8_t* block,
                           const float* queries, float /*middle*/,
                           OfBlock& own) const {
    const Floats d;
    const Half* const scales = format.scales(block);
    const Half* const zeros = format.zeros(block);
    FloatV sum[kRows];
    for (int r = 0; r < kRows; ++r) sum[r] = hn::Zero(d);
    for (int c = 0; c < format.inner; c += kLanes) {
      const FloatV scale = LoadHalf(scales + c), zero = LoadHalf(zeros + c);
      for (int r = 0; r < kRows; ++r) {
        const FloatV q = hn::LoadU(d, queries + r * format.inner + c);
        sum[r] = hn::MulAdd(q, zero, sum[r]);
        hn::Store(hn::Mul(q, scale), d, own.numbers[r] + c);
      }
    }
    ManyVectors sums;
    for (int r = 0; r < kRows; ++r) sums.Set(r, sum[r]);
    ReduceMany(AddOp(), sums, kRows, own.constant);
  }
};

// The same rounded to bytes, a row with one step for all blocks of a run.
// `constant` is what the zero points, and the rounding at the middle code, add.
template <int kRows>
struct RoundedQueries {
  struct OfBlock {
    alignas(64) int8_t numbers[kRows][kMaxHeadDim];
    alignas(64) float constant[kMany];
  };
  Rounding rounding;  // index: row

  // Steps from the largest scale of each channel.
  HWY_INLINE void SetRun(const LaneBlock& format, const BlockRun& run,
                         const float* queries) {
    const Floats d;
    const int inner = format.inner;
    const Half* scales[kMaxRunSlices];
    int blocks = 0;
    for (int i = 0; i < run.num_slices; ++i)
      if (i == 0 || run.slices[i].block != run.slices[i - 1].block)
        scales[blocks++] = format.scales(run.slices[i].block);
    FloatV bound[kRows];
    for (int r = 0; r < kRows; ++r) bound[r] = hn::Zero(d);
    for (int c = 0; c < inner; c += kLanes) {
      HalfBitsV max = hn::Zero(HalfBits());
      for (int b = 0; b < blocks; ++b) max = MaxHalf(max, scales[b] + c);
      const FloatV scale = ToFloats(max);
      for (int r = 0; r < kRows; ++r) {
        const FloatV q = hn::LoadU(d, queries + r * inner + c);
        bound[r] = hn::Max(bound[r], hn::Mul(hn::Abs(q), scale));
      }
    }
    ManyVectors bounds;
    alignas(64) float bound_of_row[kMany] = {};
    for (int r = 0; r < kRows; ++r) bounds.Set(r, bound[r]);
    ReduceMany(MaxOp(), bounds, kRows, bound_of_row);
    rounding.Set(bound_of_row, 127);
    for (int r = 0; r < kRows; ++r) {
      const FloatV inverse = hn::Set(d, rounding.inverse[r]);
      for (int c = 0; c < inner; c += kLanes)
        hn::Store(hn::Mul(hn::LoadU(d, queries + r * inner + c), inverse), d,
                  in_steps_[r] + c);
    }
  }

  HWY_INLINE void SetBlock(const LaneBlock& format, const uint8_t* block,
                           const float* queries, float middle,
                           OfBlock& own) const {
    const Floats d;
    const Half* const scales = format.scales(block);
    const Half* const zeros = format.zeros(block);
    const int inner = format.inner;
    // Numbers of the middle code less what the bytes make of it: the zero
    // points, and the middle code times what rounding took.
    FloatV exact[kRows];
    IntV bytes[kRows];
    for (int r = 0; r < kRows; ++r) {
      exact[r] = hn::Zero(d);
      bytes[r] = hn::Zero(Ints());
    }
    for (int c = 0; c < inner; c += 2 * kShortLanes) {
      ShortV steps[2][kRows];
      Unroll<2>([&](auto half) KVMIX_KERNEL_LAMBDA {
        const int from = c + half * kShortLanes;
        if (from >= inner) {  // 32 channels are half of what bytes hold
          for (int r = 0; r < kRows; ++r) steps[half][r] = ZeroShorts();
          return;
        }
        FloatV scale[2], number[2];
        Unroll<2>([&](auto v) KVMIX_KERNEL_LAMBDA {
          const int at = from + v * kLanes;
          scale[v] = LoadHalf(scales + at);
          number[v] =
              hn::MulAdd(scale[v], hn::Set(d, middle), LoadHalf(zeros + at));
        });
        for (int r = 0; r < kRows; ++r) {
          const float* const q = queries + r * inner + from;
          exact[r] = hn::MulAdd(hn::LoadU(d, q), number[0], exact[r]);
          exact[r] = hn::MulAdd(hn::LoadU(d, q + kLanes), number[1], exact[r]);
          const float* const in_steps = in_steps_[r] + from;
          steps[half][r] =
              ToShorts(hn::Mul(hn::Load(d, in_steps), scale[0]),
                       hn::Mul(hn::Load(d, in_steps + kLanes), scale[1]));
        }
      });
      for (int r = 0; r < kRows; ++r)
        bytes[r] = AddBytes<int8_t>(
            bytes[r], StoreBytes(steps[0][r], steps[1][r], own.numbers[r] + c));
    }
    ManyVectors constants;
    for (int r = 0; r < kRows; ++r)
      constants.Set(
          r, hn::NegMulAdd(hn::ConvertTo(d, bytes[r]),
                           hn::Set(d, middle * rounding.step[r]), exact[r]));
    ReduceMany(AddOp(), constants, kRows, own.constant);
  }

 private:
  alignas(64) float in_steps_[kRows][kMaxHeadDim];  // queries
};

// Keys PER_CHANNEL: scales go into the query.
template <int kBits, int kRows, bool kInt8>
void ScorePerChannel(const LaneBlock& format, const BlockRun& run,
                     bool prefetch, const float* queries, float* scores,
                     int64_t stride) {
  using V = std::conditional_t<kInt8, IntV, FloatV>;
  const Floats d;
  [[maybe_unused]] const FloatV table = CodeTable<kBits>();
  const LinesAhead ahead(format, prefetch, format.lanes,
                         format.inner / LaneBlock::kUnit);
  using Queries =
      std::conditional_t<kInt8, RoundedQueries<kRows>, ScaledQueries<kRows>>;
  Queries of_run;
  of_run.SetRun(format, run, queries);
  typename Queries::OfBlock of_block[2];
  of_run.SetBlock(format, run.slices[0].block, queries, kMiddle<kBits>,
                  of_block[0]);
  int now = 0;
  for (int i = 0; i < run.num_slices; ++i, scores += LaneBlock::kSlice) {
    const BlockSlice slice = run.slices[i];
    const auto& own = of_block[now];
    // The next block's, so that products with it need not wait.
    if (i + 1 < run.num_slices && run.slices[i + 1].block != slice.block) {
      now = 1 - now;
      of_run.SetBlock(format, run.slices[i + 1].block, queries, kMiddle<kBits>,
                      of_block[now]);
    }
    for (int v0 = 0; v0 < kSliceVecs; v0 += kSpan) {
      const uint32_t* unit =
          format.slice(slice.block, slice.index) + v0 * kLanes;
      V sum[Chains<kBits, V>(kRows)][kSpan][kRows];
      Clear(sum);
      for (int c = 0; c < format.inner; c += LaneBlock::kUnit) {
        if (v0 == 0) ahead.Step(slice, c / LaneBlock::kUnit);
        if constexpr (kInt8) {
          const int8_t* rows[kRows];
          for (int r = 0; r < kRows; ++r) rows[r] = own.numbers[r] + c;
          AddUnit<kBits, kRows, int8_t>(unit, rows, sum);
        } else {
          const float* rows[kRows];
          for (int r = 0; r < kRows; ++r) rows[r] = own.numbers[r] + c;
          AddUnit<kBits, kRows>(table, unit, rows, sum);
        }
        unit += format.unit_words();
      }
      for (int r = 0; r < kRows; ++r) {
        const FloatV constant = hn::Set(d, own.constant[r]);
        for (int v = 0; v < kSpan; ++v) {
          const V total = Total<kBits>(sum, v, r);
          FloatV score;
          if constexpr (kInt8) {
            score = hn::MulAdd(hn::ConvertTo(d, total),
                               hn::Set(d, of_run.rounding.step[r]), constant);
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
void ScorePerToken(const LaneBlock& format, const BlockRun& run, bool prefetch,
                   const float* queries, float* scores, int64_t stride) {
  using V = std::conditional_t<kInt8, IntV, FloatV>;
  const Floats d;
  const int D = format.inner, num_groups = D / format.group;
  // Of each group of channels: the query's sum, and the query as bytes.
  alignas(64) int8_t rounded[kRows][kMaxHeadDim + kSliceTokens];
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
        const int c = g * format.group;
        const IntV bytes = RoundToBytes(query + c, format.group,
                                        rounding[r].inverse[g], rounded[r] + c);
        sum.Set(g, hn::NegMulAdd(hn::ConvertTo(d, bytes),
                                 hn::Set(d, rounding[r].step[g]), sum.Get(g)));
      }
      ReduceMany(AddOp(), sum, kMany, left[r]);
    }
  }
  [[maybe_unused]] const FloatV table = CodeTable<kBits>();
  const LinesAhead ahead(format, prefetch, format.lanes, num_groups);
  for (int i = 0; i < run.num_slices; ++i, scores += LaneBlock::kSlice) {
    const uint8_t* const block = run.slices[i].block;
    const int slice = run.slices[i].index;
    for (int v0 = 0; v0 < kSliceVecs; v0 += kSpan) {
      const uint32_t* unit = format.slice(block, slice) + v0 * kLanes;
      const int lane = slice * LaneBlock::kSlice + v0 * kLanes;
      FloatV total[kSpan][kRows];
      for (auto& vec : total)
        for (FloatV& v : vec) v = hn::Zero(d);
      for (int g = 0; g < num_groups; ++g) {
        if (v0 == 0) ahead.Step(run.slices[i], g);
        V sum[Chains<kBits, V>(kRows)][kSpan][kRows];
        Clear(sum);
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
              dot = hn::MulAdd(hn::ConvertTo(d, Total<kBits>(sum, v, r)),
                               hn::Set(d, rounding[r].step[g]),
                               hn::Set(d, kMiddle<kBits> * left[r][g]));
            } else {
              dot = Total<kBits>(sum, v, r);
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

template <int kBits, int kRows, bool kInt8>
void ScoreAxis(const LaneBlock& format, const BlockRun& run, bool prefetch,
               const float* queries, float* scores, int64_t stride) {
  format.groups_along_lanes
      ? ScorePerChannel<kBits, kRows, kInt8>(format, run, prefetch, queries,
                                             scores, stride)
      : ScorePerToken<kBits, kRows, kInt8>(format, run, prefetch, queries,
                                           scores, stride);
}

template <int kBits, int kRows>
void Score(const LaneBlock& format, AttentionArithmetic arithmetic,
           const BlockRun& run, bool prefetch, const float* queries,
           float* scores, int64_t stride) {
  if constexpr (kBits <= 4) {
    if (arithmetic == AttentionArithmetic::kInt8)
      return ScoreAxis<kBits, kRows, true>(format, run, prefetch, queries,
                                           scores, stride);
  }
  return ScoreAxis<kBits, kRows, false>(format, run, prefetch, queries, scores,
                                        stride);
}

// KVmix's words: lanes are channels, and the sums over channels come last.
template <int kRows>
void ScoreElevensOf(const ElevenBlock& format, const uint8_t* block,
                    const float* queries, float* scores, int64_t stride) {
  constexpr int kTokens = ElevenBlock::kTokens;
  const Floats d;
  const int D = format.head_dim;
  [[maybe_unused]] const FloatV table = CodeTable<3>();
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
      scores[r * stride + t] = total[t] + total[kTokens];
  }
}

template <int kRows, class T>
void ScoreNumbers(const T* page, int head_dim, int64_t ahead,
                  const float* queries, float* scores, int64_t stride) {
  constexpr int kChains = Chains<32, FloatV>(kRows);
  const Floats d;
  for (int v0 = 0; v0 < kSliceVecs; v0 += kSpan) {
    FloatV sum[kChains][kSpan][kRows];
    Clear(sum);
    const T* channel = page + v0 * kLanes;
    for (int c = 0; c < head_dim; c += kChains) {
      for (int chain = 0; chain < kChains; ++chain) {
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
        hn::StoreU(Total<32>(sum, v, r), d,
                   scores + r * stride + (v0 + v) * kLanes);
  }
}

void ScoreBlocksImpl(const LaneBlock& format, AttentionArithmetic arithmetic,
                     const BlockRun& run, const float* queries, int rows,
                     float* scores, int64_t stride) {
  ForRows(rows, [&](auto k, int first) HWY_ATTR {
    const float* q = queries + first * format.inner;
    float* out = scores + first * stride;
    const bool prefetch = first == 0;
    switch (format.bits) {
      case 2:
        return Score<2, k>(format, arithmetic, run, prefetch, q, out, stride);
      case 3:
        return Score<3, k>(format, arithmetic, run, prefetch, q, out, stride);
      case 4:
        return Score<4, k>(format, arithmetic, run, prefetch, q, out, stride);
      case 8:
        return Score<8, k>(format, arithmetic, run, prefetch, q, out, stride);
    }
  });
}

void ScoreElevensImpl(const ElevenBlock& format, const uint8_t* block,
                      int64_t ahead, const float* queries, int rows,
                      float* scores, int64_t stride) {
  if (ahead != 0) PrefetchLines(block + ahead, format.bytes());
  int r = 0;
  for (; r + 2 <= rows; r += 2)
    ScoreElevensOf<2>(format, block, queries + r * format.head_dim,
                      scores + r * stride, stride);
  if (r < rows)
    ScoreElevensOf<1>(format, block, queries + r * format.head_dim,
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

void ScoreElevens(const ElevenBlock& format, const uint8_t* block,
                  int64_t ahead, const float* queries, int rows, float* scores,
                  int64_t stride) {
  HWY_DYNAMIC_DISPATCH(ScoreElevensImpl)
  (format, block, ahead, queries, rows, scores, stride);
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
