// Sums of values with attention weights, lanes are channels.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "attention/packed_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/value_kernels.cc"
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

constexpr int kMaxTokens = kMaxRunSlices * kSliceTokens;
// Groups that kRows rows take at a time, and groups of the largest head_dim.
template <int kRows>
constexpr int kGroupsTogether = HWY_MIN(kMany / kRows, kMaxHeadDim / 32);

// The weights of a run's tokens as the codes of groups of channels meet them:
// in float, or rounded to bytes. `constant` is what a group's zero points, and
// the rounding at the middle code, add to all its channels. Index of group g
// and row r: g * kRows + r.
template <int kRows, bool kInt8>
struct Weights {
  using Number = std::conditional_t<kInt8, uint8_t, float>;
  alignas(64) Number numbers[kGroupsTogether<kRows> * kRows][kMaxTokens];
  Rounding rounding;
  alignas(64) float constant[kMany];
};

// The sum of codes * weights for kSpan vectors of channels from `lane` on, over
// the units of slices [first, first + num_units) of the run, whose first weight
// is the first one.
template <int kBits, int kRows, bool kInt8>
HWY_INLINE void SumUnits(const LaneBlock& format, const BlockRun& run,
                         FloatV table, const Weights<kRows, kInt8>& weights,
                         int at, int lane, int first, int num_units,
                         const LinesAhead& ahead,
                         FloatV (&total)[kSpan][kRows]) {
  using V = std::conditional_t<kInt8, IntV, FloatV>;
  const int slice = lane / LaneBlock::kSlice;
  V sum[Chains<kBits, V>(kRows)][kSpan][kRows];
  Clear(sum);
  for (int u = 0; u < num_units; ++u) {
    const BlockSlice& unit = run.slices[first + u];
    if (lane % LaneBlock::kSlice == 0) ahead.Step(unit, slice);
    const uint32_t* words = format.slice(unit.block, slice) +
                            unit.index * format.unit_words() +
                            lane % LaneBlock::kSlice;
    const typename Weights<kRows, kInt8>::Number* rows[kRows];
    for (int r = 0; r < kRows; ++r)
      rows[r] = weights.numbers[at + r] + u * LaneBlock::kUnit;
    if constexpr (kInt8) {
      AddUnit<kBits, kRows, uint8_t>(words, rows, sum);
    } else {
      AddUnit<kBits, kRows>(table, words, rows, sum);
    }
  }
  for (int v = 0; v < kSpan; ++v) {
    for (int r = 0; r < kRows; ++r) {
      if constexpr (kInt8) {
        total[v][r] = hn::Mul(hn::ConvertTo(Floats(), Total<kBits>(sum, v, r)),
                              hn::Set(Floats(), weights.rounding.step[at + r]));
      } else {
        total[v][r] = Total<kBits>(sum, v, r);
      }
    }
  }
}

// Groups [first, first + count) of a run of values PER_TOKEN.
struct Groups {
  // A token's scale in the first group, and its zero point.
  const Half* Scales(int slice) const {
    const BlockSlice& s = run.slices[slice];
    return format.scales(s.block) + int64_t{first} * format.inner +
           s.index * LaneBlock::kUnit;
  }
  const Half* Zeros(int slice) const {
    return Scales(slice) + format.scale_bytes() / sizeof(Half);
  }
  const LaneBlock& format;
  const BlockRun& run;
  int first, count;
};

// Weights [kRows, stride] times the scales of the groups, in float.
template <int kRows>
HWY_INLINE void SetWeights(const Groups& groups, const float* weights,
                           int64_t stride, float /*middle*/,
                           Weights<kRows, false>& own) {
  const Floats d;
  ManyVectors constants;
  for (int g = 0; g < groups.count; ++g) {
    FloatV sum[kRows];
    for (int r = 0; r < kRows; ++r) sum[r] = hn::Zero(d);
    for (int u = 0; u < groups.run.num_slices; ++u) {
      const Half* scales = groups.Scales(u) + g * groups.format.inner;
      const Half* zeros = groups.Zeros(u) + g * groups.format.inner;
      for (int t = 0; t < kSliceTokens; t += kLanes) {
        const FloatV scale = LoadHalf(scales + t), zero = LoadHalf(zeros + t);
        for (int r = 0; r < kRows; ++r) {
          const int at = u * kSliceTokens + t;
          const FloatV w = hn::LoadU(d, weights + r * stride + at);
          hn::Store(hn::Mul(w, scale), d, own.numbers[g * kRows + r] + at);
          sum[r] = hn::MulAdd(w, zero, sum[r]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) constants.Set(g * kRows + r, sum[r]);
  }
  ReduceMany(AddOp(), constants, groups.count * kRows, own.constant);
}

// The same rounded to bytes, each row and group with a step of its own: an
// attention sink has nearly all of the weight and next to no scale.
template <int kRows>
HWY_INLINE void SetWeights(const Groups& groups, const float* weights,
                           int64_t stride, float middle,
                           Weights<kRows, true>& own) {
  const Floats d;
  const Ints di;
  const int slices = groups.run.num_slices, inner = groups.format.inner;
  alignas(64) float scaled[kRows][kMaxTokens];
  ManyVectors constants;
  for (int g = 0; g < groups.count; ++g) {
    // Numbers of the middle code less what the bytes make of it: the zero
    // points, and the middle code times what rounding took.
    FloatV exact[kRows];
    // None is negative, so that they compare as integers do.
    IntV largest[kRows];
    for (int r = 0; r < kRows; ++r) {
      exact[r] = hn::Zero(d);
      largest[r] = hn::Zero(di);
    }
    for (int u = 0; u < slices; ++u) {
      const Half* const scales = groups.Scales(u) + g * inner;
      const Half* const zeros = groups.Zeros(u) + g * inner;
      for (int i = 0; i < kSliceTokens; i += kLanes) {
        const int t = u * kSliceTokens + i;
        const FloatV scale = LoadHalf(scales + i);
        const FloatV number =
            hn::MulAdd(scale, hn::Set(d, middle), LoadHalf(zeros + i));
        for (int r = 0; r < kRows; ++r) {
          const FloatV w = hn::LoadU(d, weights + r * stride + t);
          const FloatV x = hn::Mul(w, scale);
          exact[r] = hn::MulAdd(w, number, exact[r]);
          largest[r] = hn::Max(largest[r], hn::BitCast(di, x));
          hn::Store(x, d, scaled[r] + t);
        }
      }
    }
    ManyVectors bounds;
    alignas(64) float bound[kMany] = {};
    for (int r = 0; r < kRows; ++r) bounds.Set(r, hn::BitCast(d, largest[r]));
    ReduceMany(MaxOp(), bounds, kRows, bound);
    Rounding rounding;
    rounding.Set(bound, 255);
    for (int r = 0; r < kRows; ++r) {
      const int i = g * kRows + r;
      const IntV bytes = RoundToBytes(scaled[r], slices * kSliceTokens,
                                      rounding.inverse[r], own.numbers[i]);
      own.rounding.step[i] = rounding.step[r];
      constants.Set(
          i, hn::NegMulAdd(hn::ConvertTo(d, bytes),
                           hn::Set(d, middle * rounding.step[r]), exact[r]));
    }
  }
  ReduceMany(AddOp(), constants, groups.count * kRows, own.constant);
}

// Values PER_TOKEN: scales go into the weights.
template <int kBits, int kRows, bool kInt8>
void AccumulatePerToken(const LaneBlock& format, const BlockRun& run,
                        bool prefetch, const float* weights, int64_t stride,
                        float* out) {
  const Floats d;
  const FloatV table = CodeTable<kBits>();
  const int D = format.lanes, num_groups = D / format.group;
  const LinesAhead ahead(format, prefetch, format.inner, D / LaneBlock::kSlice);
  Weights<kRows, kInt8> own;
  for (int g0 = 0; g0 < num_groups; g0 += kGroupsTogether<kRows>) {
    const int count = std::min(kGroupsTogether<kRows>, num_groups - g0);
    SetWeights({format, run, g0, count}, weights, stride, kMiddle<kBits>, own);
    for (int g = 0; g < count; ++g) {
      const int end = (g0 + g + 1) * format.group;
      for (int lane = end - format.group; lane < end; lane += kSpan * kLanes) {
        FloatV sum[kSpan][kRows];
        SumUnits<kBits, kRows, kInt8>(format, run, table, own, g * kRows, lane,
                                      0, run.num_slices, ahead, sum);
        for (int r = 0; r < kRows; ++r) {
          const FloatV constant = hn::Set(d, own.constant[g * kRows + r]);
          for (int v = 0; v < kSpan; ++v) {
            float* to = out + r * D + lane + v * kLanes;
            hn::StoreU(hn::Add(hn::LoadU(d, to), hn::Add(sum[v][r], constant)),
                       d, to);
          }
        }
      }
    }
  }
}

// Values PER_CHANNEL: a channel has a scale for each group of tokens.
template <int kBits, int kRows, bool kInt8>
void AccumulatePerChannel(const LaneBlock& format, const BlockRun& run,
                          bool prefetch, const float* weights, int64_t stride,
                          float* out) {
  const Floats d;
  const FloatV table = CodeTable<kBits>();
  const int D = format.lanes;
  const int per_group = format.group / LaneBlock::kUnit;
  const LinesAhead ahead(format, prefetch, format.inner, D / LaneBlock::kSlice);
  Weights<kRows, kInt8> own;
  for (int u = 0; u < run.num_slices;) {
    // The rest of the group that unit u is in.
    const int unit = run.slices[u].index;
    const int n = std::min(per_group - unit % per_group, run.num_slices - u);
    const uint8_t* block = run.slices[u].block;
    const int64_t group = int64_t{unit} / per_group * format.lanes;
    const float* const first = weights + u * kSliceTokens;
    ManyVectors largest, sums;
    for (int r = 0; r < kRows; ++r) {
      FloatV sum = hn::Zero(d), max = hn::Zero(d);
      for (int t = 0; t < n * kSliceTokens; t += kLanes) {
        const FloatV w = hn::LoadU(d, first + r * stride + t);
        sum = hn::Add(sum, w);
        max = hn::Max(max, w);
        if constexpr (!kInt8) hn::Store(w, d, own.numbers[r] + t);
      }
      largest.Set(r, max);
      sums.Set(r, sum);
    }
    alignas(64) float sum_of_weights[kMany];
    ReduceMany(AddOp(), sums, kRows, sum_of_weights);
    if constexpr (kInt8) {
      alignas(64) float bound[kMany] = {};
      ReduceMany(MaxOp(), largest, kRows, bound);
      own.rounding.Set(bound, 255);
      ManyVectors left;
      for (int r = 0; r < kRows; ++r) {
        const IntV bytes =
            RoundToBytes(first + r * stride, n * kSliceTokens,
                         own.rounding.inverse[r], own.numbers[r]);
        left.Set(r,
                 hn::NegMulAdd(hn::ConvertTo(d, bytes),
                               hn::Set(d, own.rounding.step[r]), sums.Get(r)));
      }
      ReduceMany(AddOp(), left, kRows, own.constant);
      for (int r = 0; r < kRows; ++r) own.constant[r] *= kMiddle<kBits>;
    }
    for (int lane = 0; lane < D; lane += kSpan * kLanes) {
      FloatV sum[kSpan][kRows];
      SumUnits<kBits, kRows, kInt8>(format, run, table, own, 0, lane, u, n,
                                    ahead, sum);
      for (int v = 0; v < kSpan; ++v) {
        const int64_t at = group + lane + v * kLanes;
        const FloatV scale = LoadHalf(format.scales(block) + at);
        const FloatV zero = LoadHalf(format.zeros(block) + at);
        for (int r = 0; r < kRows; ++r) {
          float* to = out + r * D + lane + v * kLanes;
          FloatV x = hn::LoadU(d, to);
          x = hn::MulAdd(kInt8 ? hn::Add(sum[v][r], hn::Set(d, own.constant[r]))
                               : sum[v][r],
                         scale, x);
          hn::StoreU(hn::MulAdd(zero, hn::Set(d, sum_of_weights[r]), x), d, to);
        }
      }
    }
    u += n;
  }
}

template <int kBits, int kRows, bool kInt8>
void AccumulateAxis(const LaneBlock& format, const BlockRun& run, bool prefetch,
                    const float* weights, int64_t stride, float* out) {
  format.groups_along_lanes ? AccumulatePerToken<kBits, kRows, kInt8>(
                                  format, run, prefetch, weights, stride, out)
                            : AccumulatePerChannel<kBits, kRows, kInt8>(
                                  format, run, prefetch, weights, stride, out);
}

template <int kBits, int kRows>
void Accumulate(const LaneBlock& format, AttentionArithmetic arithmetic,
                const BlockRun& run, bool prefetch, const float* weights,
                int64_t stride, float* out) {
  if constexpr (kBits <= 4) {
    if (arithmetic == AttentionArithmetic::kInt8)
      return AccumulateAxis<kBits, kRows, true>(format, run, prefetch, weights,
                                                stride, out);
  }
  return AccumulateAxis<kBits, kRows, false>(format, run, prefetch, weights,
                                             stride, out);
}

// kVecs vectors of channels.
template <int kRows, int kVecs, class D, class T>
HWY_INLINE void AccumulateVecs(D d, const T* values, int tokens, int head_dim,
                               int64_t ahead, const float* weights,
                               int64_t stride, float* out) {
  constexpr int kN = HWY_MAX(1, static_cast<int>(hn::MaxLanes(D())));
  hn::Vec<D> sum[kVecs][kRows];
  for (int v = 0; v < kVecs; ++v)
    for (int r = 0; r < kRows; ++r)
      sum[v][r] = hn::LoadU(d, out + r * head_dim + v * kN);
  for (int t = 0; t < tokens; ++t, values += head_dim) {
    if (ahead != 0)
      PrefetchLines(reinterpret_cast<const char*>(values) + ahead,
                    int64_t{sizeof(T)} * kVecs * kN);
    hn::Vec<D> value[kVecs];
    for (int v = 0; v < kVecs; ++v) value[v] = LoadNumbers(d, values + v * kN);
    for (int r = 0; r < kRows; ++r) {
      const auto w = hn::Set(d, weights[r * stride + t]);
      for (int v = 0; v < kVecs; ++v)
        sum[v][r] = hn::MulAdd(value[v], w, sum[v][r]);
    }
  }
  for (int v = 0; v < kVecs; ++v)
    for (int r = 0; r < kRows; ++r)
      hn::StoreU(sum[v][r], d, out + r * head_dim + v * kN);
}

template <int kRows, class T>
void AccumulateNumbers(const T* values, int tokens, int head_dim, int64_t ahead,
                       const float* weights, int64_t stride, float* out) {
  int c = 0;
  for (; c + 4 * kLanes <= head_dim; c += 4 * kLanes)
    AccumulateVecs<kRows, 4>(Floats(), values + c, tokens, head_dim, ahead,
                             weights, stride, out + c);
  for (; c + kLanes <= head_dim; c += kLanes)
    AccumulateVecs<kRows, 1>(Floats(), values + c, tokens, head_dim, ahead,
                             weights, stride, out + c);
  if (c < head_dim)  // head_dim is a multiple of 8
    AccumulateVecs<kRows, 1>(hn::CappedTag<float, 8>(), values + c, tokens,
                             head_dim, 0, weights, stride, out + c);
}

void AccumulateBlocksImpl(const LaneBlock& format,
                          AttentionArithmetic arithmetic, const BlockRun& run,
                          const float* weights, int64_t stride, int rows,
                          float* out) {
  ForRows(rows, [&](auto k, int first) HWY_ATTR {
    const float* w = weights + first * stride;
    float* to = out + first * format.lanes;
    const bool prefetch = first == 0;
    switch (format.bits) {
      case 2:
        return Accumulate<2, k>(format, arithmetic, run, prefetch, w, stride,
                                to);
      case 3:
        return Accumulate<3, k>(format, arithmetic, run, prefetch, w, stride,
                                to);
      case 4:
        return Accumulate<4, k>(format, arithmetic, run, prefetch, w, stride,
                                to);
      case 8:
        return Accumulate<8, k>(format, arithmetic, run, prefetch, w, stride,
                                to);
    }
  });
}

template <class T>
void AccumulatePageOf(const T* values, int tokens, int head_dim, int64_t ahead,
                      const float* weights, int64_t stride, int rows,
                      float* out) {
  ForRows(rows, [&](auto k, int first) HWY_ATTR {
    AccumulateNumbers<k>(values, tokens, head_dim, first == 0 ? ahead : 0,
                         weights + first * stride, stride,
                         out + first * head_dim);
  });
}

void AccumulatePageImpl(NumberType type, const void* page, int tokens,
                        int head_dim, int64_t ahead, const float* weights,
                        int64_t stride, int rows, float* out) {
  VisitNumbers(type, page, [=](const auto* values) {
    AccumulatePageOf(values, tokens, head_dim, ahead, weights, stride, rows,
                     out);
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvmix
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvmix {

HWY_EXPORT(AccumulateBlocksImpl);
HWY_EXPORT(AccumulatePageImpl);

void AccumulateBlocks(const LaneBlock& format, AttentionArithmetic arithmetic,
                      const BlockRun& run, const float* weights, int64_t stride,
                      int rows, float* out) {
  HWY_DYNAMIC_DISPATCH(AccumulateBlocksImpl)
  (format, arithmetic, run, weights, stride, rows, out);
}

void AccumulatePage(NumberType type, const void* values, int tokens,
                    int head_dim, int64_t ahead, const float* weights,
                    int64_t stride, int rows, float* out) {
  HWY_DYNAMIC_DISPATCH(AccumulatePageImpl)
  (type, values, tokens, head_dim, ahead, weights, stride, rows, out);
}

}  // namespace kvmix
#endif  // HWY_ONCE
