// Sums of values with attention weights, lanes are channels.
#include <algorithm>
#include <cstdint>

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

// The weights of a run's tokens as the codes of groups of channels meet them:
// in float, or rounded to bytes. `constant` is what a group's zero points, and
// the rounding at the middle code, add to all its channels. Index of group g
// and row r: g * kRows + r.
template <int kRows>
struct Weights {
  alignas(64) float rows[kMany][kMaxTokens];
  alignas(64) uint8_t rounded[kMany][kMaxTokens];
  Rounding rounding;
  alignas(64) float constant[kMany];
};

// The sum of codes * weights for kSpan vectors of channels from `lane` on, over
// units [first, first + num_units) of the run.
template <int kBits, int kRows, bool kInt8>
HWY_INLINE void SumUnits(const LaneBlock& format, const Slices& units,
                         FloatV table, const Weights<kRows>& weights, int at,
                         int lane, int first, int num_units, LinesAhead& ahead,
                         FloatV (&total)[kSpan][kRows]) {
  using V = std::conditional_t<kInt8, IntV, FloatV>;
  const int slice = lane / LaneBlock::kSlice;
  V sum[Chains(kRows)][kSpan][kRows];
  Clear<V, kRows>(sum);
  for (int u = 0; u < num_units; ++u) {
    ahead.Step();
    const uint32_t* words = format.slice(units.block[first + u], slice) +
                            units.in_block[first + u] * format.unit_words() +
                            lane % LaneBlock::kSlice;
    if constexpr (kInt8) {
      const uint8_t* rows[kRows];
      for (int r = 0; r < kRows; ++r)
        rows[r] = weights.rounded[at + r] + u * 32;
      AddUnit<kBits, kRows, uint8_t>(words, rows, sum);
    } else {
      const float* rows[kRows];
      for (int r = 0; r < kRows; ++r) rows[r] = weights.rows[at + r] + u * 32;
      AddUnit<kBits, kRows>(table, words, rows, sum);
    }
  }
  for (int v = 0; v < kSpan; ++v) {
    for (int r = 0; r < kRows; ++r) {
      if constexpr (kInt8) {
        total[v][r] =
            hn::Mul(hn::ConvertTo(Floats(), Total<V, kRows>(sum, v, r)),
                    hn::Set(Floats(), weights.rounding.step[at + r]));
      } else {
        total[v][r] = Total<V, kRows>(sum, v, r);
      }
    }
  }
}

// Weights of n units and groups [first, first + count), values PER_TOKEN.
template <int kBits, int kRows, bool kInt8>
HWY_INLINE void ScaleWeights(const LaneBlock& format, const Slices& units,
                             int n, int first, int count, const float* weights,
                             int64_t stride, Weights<kRows>& own) {
  const Floats d;
  const int64_t scales = format.code_bytes();
  const int64_t zeros = scales + format.scale_bytes();
  // In integers, `exact` is of the middle code, less what the bytes make of it:
  // the zero points, and the middle code times what rounding took.
  ManyVectors constants, largest;
  for (int g = 0; g < count; ++g) {
    FloatV exact[kRows], max[kRows];
    for (int r = 0; r < kRows; ++r) exact[r] = max[r] = hn::Zero(d);
    for (int t = 0; t < n * kSliceTokens; t += kLanes) {
      const int unit = t / kSliceTokens;
      const int64_t at = int64_t{first + g} * format.inner +
                         units.in_block[unit] * LaneBlock::kUnit +
                         t % kSliceTokens;
      const auto load = [&](int64_t part) KVMIX_KERNEL_LAMBDA {
        return LoadHalf(
            reinterpret_cast<const Half*>(units.block[unit] + part) + at);
      };
      const FloatV scale = load(scales);
      FloatV number = load(zeros);
      if constexpr (kInt8)
        number = hn::MulAdd(scale, hn::Set(d, kMiddle<kBits>), number);
      for (int r = 0; r < kRows; ++r) {
        const FloatV w = hn::LoadU(d, weights + r * stride + t);
        const FloatV x = hn::Mul(w, scale);
        hn::Store(x, d, own.rows[g * kRows + r] + t);
        exact[r] = hn::MulAdd(w, number, exact[r]);
        // Weights and scales are positive.
        if constexpr (kInt8) max[r] = hn::Max(max[r], x);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      constants.Set(g * kRows + r, exact[r]);
      largest.Set(g * kRows + r, max[r]);
    }
  }
  if constexpr (kInt8) {
    alignas(64) float bound[kMany] = {};
    ReduceMany(MaxOp(), largest, count * kRows, bound);
    own.rounding.Set(bound, 255);
    for (int i = 0; i < count * kRows; ++i) {
      const FloatV inverse = hn::Set(d, own.rounding.inverse[i]);
      const float* const x = own.rows[i];
      uint8_t* const rounded = own.rounded[i];
      IntV bytes = hn::Zero(Ints());
      for (int t = 0; t < n * kSliceTokens; t += kLanes)
        bytes = hn::Add(
            bytes,
            RoundToBytes(hn::Mul(hn::Load(d, x + t), inverse), rounded + t));
      constants.Set(
          i, hn::NegMulAdd(hn::ConvertTo(d, bytes),
                           hn::Set(d, kMiddle<kBits> * own.rounding.step[i]),
                           constants.Get(i)));
    }
  }
  ReduceMany(AddOp(), constants, count * kRows, own.constant);
}

// Values PER_TOKEN: scales go into the weights.
template <int kBits, int kRows, bool kInt8>
void AccumulatePerToken(const LaneBlock& format, const BlockRun& run,
                        const float* weights, int64_t stride, float* out) {
  const Floats d;
  const FloatV table = CodeTable<kBits>();
  const int D = format.lanes, num_groups = D / format.group;
  constexpr int kGroups = kMany / kRows;  // at a time
  const int n = run.num_slices, per_block = format.inner / LaneBlock::kUnit;
  const Slices units(run, per_block);
  LinesAhead ahead(run, per_block, n * D / (kSpan * kLanes));
  Weights<kRows> scaled;
  for (int g0 = 0; g0 < num_groups; g0 += kGroups) {
    const int groups = std::min(kGroups, num_groups - g0);
    ScaleWeights<kBits, kRows, kInt8>(format, units, n, g0, groups, weights,
                                      stride, scaled);
    for (int g = 0; g < groups; ++g) {
      const int end = (g0 + g + 1) * format.group;
      for (int lane = end - format.group; lane < end; lane += kSpan * kLanes) {
        FloatV sum[kSpan][kRows];
        SumUnits<kBits, kRows, kInt8>(format, units, table, scaled, g * kRows,
                                      lane, 0, n, ahead, sum);
        for (int r = 0; r < kRows; ++r) {
          const FloatV constant = hn::Set(d, scaled.constant[g * kRows + r]);
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
                          const float* weights, int64_t stride, float* out) {
  const Floats d;
  const FloatV table = CodeTable<kBits>();
  const int D = format.lanes, per_block = format.inner / LaneBlock::kUnit;
  const int per_group = format.group / LaneBlock::kUnit;
  const Slices units(run, per_block);
  LinesAhead ahead(run, per_block, run.num_slices * D / (kSpan * kLanes));
  Weights<kRows> own;
  for (int u = 0; u < run.num_slices;) {
    // The rest of the group that unit u is in.
    const int unit = units.in_block[u];
    const int n = std::min(per_group - unit % per_group, run.num_slices - u);
    const uint8_t* block = units.block[u];
    const int64_t group = int64_t{unit} / per_group * format.lanes;
    ManyVectors largest, sums;
    for (int r = 0; r < kRows; ++r) {
      FloatV sum = hn::Zero(d), max = hn::Zero(d);
      for (int t = 0; t < n * kSliceTokens; t += kLanes) {
        const FloatV w =
            hn::LoadU(d, weights + r * stride + u * kSliceTokens + t);
        sum = hn::Add(sum, w);
        max = hn::Max(max, w);
        hn::Store(w, d, own.rows[r] + t);
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
        IntV bytes = hn::Zero(Ints());
        const FloatV inverse = hn::Set(d, own.rounding.inverse[r]);
        for (int t = 0; t < n * kSliceTokens; t += kLanes)
          bytes = hn::Add(
              bytes,
              RoundToBytes(hn::Mul(hn::Load(d, own.rows[r] + t), inverse),
                           own.rounded[r] + t));
        left.Set(r,
                 hn::NegMulAdd(hn::ConvertTo(d, bytes),
                               hn::Set(d, own.rounding.step[r]), sums.Get(r)));
      }
      ReduceMany(AddOp(), left, kRows, own.constant);
      for (int r = 0; r < kRows; ++r) own.constant[r] *= kMiddle<kBits>;
    }
    for (int lane = 0; lane < D; lane += kSpan * kLanes) {
      FloatV sum[kSpan][kRows];
      SumUnits<kBits, kRows, kInt8>(format, units, table, own, 0, lane, u, n,
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
void AccumulateAxis(const LaneBlock& format, const BlockRun& run,
                    const float* weights, int64_t stride, float* out) {
  format.groups_along_lanes ? AccumulatePerToken<kBits, kRows, kInt8>(
                                  format, run, weights, stride, out)
                            : AccumulatePerChannel<kBits, kRows, kInt8>(
                                  format, run, weights, stride, out);
}

template <int kBits, int kRows>
void Accumulate(const LaneBlock& format, AttentionArithmetic arithmetic,
                const BlockRun& run, const float* weights, int64_t stride,
                float* out) {
  if constexpr (kBits <= 4) {
    if (arithmetic == AttentionArithmetic::kInt8)
      return AccumulateAxis<kBits, kRows, true>(format, run, weights, stride,
                                                out);
  }
  return AccumulateAxis<kBits, kRows, false>(format, run, weights, stride, out);
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
    const BlockRun part = first == 0 ? run : WithoutPrefetch(run);
    switch (format.bits) {
      case 2:
        return Accumulate<2, k>(format, arithmetic, part, w, stride, to);
      case 3:
        return Accumulate<3, k>(format, arithmetic, part, w, stride, to);
      case 4:
        return Accumulate<4, k>(format, arithmetic, part, w, stride, to);
      case 8:
        return Accumulate<8, k>(format, arithmetic, part, w, stride, to);
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
