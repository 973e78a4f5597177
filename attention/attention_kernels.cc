#include "attention/attention_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/attention_kernels.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvmix {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// head_dim is a multiple of 8, so vectors have at most 8 lanes.
using Floats = hn::CappedTag<float, 8>;
constexpr int kLanes = HWY_MIN(HWY_LANES(float), 8);

void HalfToFloatImpl(const Half* half, int64_t n, float* x) {
#if HWY_TARGET == HWY_SCALAR
  for (int64_t i = 0; i < n; ++i) x[i] = ToFloat(half[i]);
#else
  const Floats d;
  const hn::Rebind<hwy::float16_t, Floats> dh;
  const auto* from = reinterpret_cast<const hwy::float16_t*>(half);
  for (int64_t i = 0; i < n; i += kLanes)
    hn::StoreU(hn::PromoteTo(d, hn::LoadU(dh, from + i)), d, x + i);
#endif
}

#if HWY_TARGET != HWY_SCALAR
// x [8, stride] = half [8, half_stride], transposed. Three rounds of
// interleaving row i with row i + 4 carry (row, column) to (column, row).
HWY_INLINE void Transpose8x8(const Half* half, int64_t half_stride, float* x,
                             int64_t stride) {
  const hn::FixedTag<uint16_t, 8> d16;
  using V = hn::Vec<decltype(d16)>;
  const auto* from = reinterpret_cast<const uint16_t*>(half);
  V a0 = hn::LoadU(d16, from), a1 = hn::LoadU(d16, from + half_stride);
  V a2 = hn::LoadU(d16, from + 2 * half_stride);
  V a3 = hn::LoadU(d16, from + 3 * half_stride);
  V a4 = hn::LoadU(d16, from + 4 * half_stride);
  V a5 = hn::LoadU(d16, from + 5 * half_stride);
  V a6 = hn::LoadU(d16, from + 6 * half_stride);
  V a7 = hn::LoadU(d16, from + 7 * half_stride);
  for (int round = 0; round < 3; ++round) {
    const V b0 = hn::InterleaveLower(d16, a0, a4);
    const V b1 = hn::InterleaveUpper(d16, a0, a4);
    const V b2 = hn::InterleaveLower(d16, a1, a5);
    const V b3 = hn::InterleaveUpper(d16, a1, a5);
    const V b4 = hn::InterleaveLower(d16, a2, a6);
    const V b5 = hn::InterleaveUpper(d16, a2, a6);
    const V b6 = hn::InterleaveLower(d16, a3, a7);
    const V b7 = hn::InterleaveUpper(d16, a3, a7);
    a0 = b0, a1 = b1, a2 = b2, a3 = b3, a4 = b4, a5 = b5, a6 = b6, a7 = b7;
  }
  HWY_ALIGN Half rows[8][8];
  auto* to = reinterpret_cast<uint16_t*>(rows);
  hn::Store(a0, d16, to), hn::Store(a1, d16, to + 8);
  hn::Store(a2, d16, to + 16), hn::Store(a3, d16, to + 24);
  hn::Store(a4, d16, to + 32), hn::Store(a5, d16, to + 40);
  hn::Store(a6, d16, to + 48), hn::Store(a7, d16, to + 56);
  for (int i = 0; i < 8; ++i) HalfToFloatImpl(rows[i], 8, x + i * stride);
}
#endif

void HalfToFloatTransposedImpl(const Half* half, int tokens, int head_dim,
                               float* x, int64_t stride) {
  int t = 0;
#if HWY_TARGET != HWY_SCALAR
  for (; t + 8 <= tokens; t += 8)
    for (int d = 0; d < head_dim; d += 8)
      Transpose8x8(half + int64_t{t} * head_dim + d, head_dim,
                   x + d * stride + t, stride);
#endif
  for (; t < tokens; ++t)
    for (int d = 0; d < head_dim; ++d)
      x[d * stride + t] = ToFloat(half[int64_t{t} * head_dim + d]);
}

// kRows rows against kVecs vectors of tokens.
template <int kRows, int kVecs>
HWY_INLINE void ScoreBlock(const float* queries, int head_dim,
                           const float* keys, float* scores) {
  const Floats d;
  hn::Vec<Floats> sum[kRows][kVecs];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVecs; ++v) sum[r][v] = hn::Zero(d);
  for (int i = 0; i < head_dim; ++i, keys += kTileTokens) {
    hn::Vec<Floats> key[kVecs];
    for (int v = 0; v < kVecs; ++v) key[v] = hn::Load(d, keys + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const auto query = hn::Set(d, queries[r * head_dim + i]);
      for (int v = 0; v < kVecs; ++v)
        sum[r][v] = hn::MulAdd(query, key[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVecs; ++v)
      hn::Store(sum[r][v], d, scores + r * kTileTokens + v * kLanes);
}

template <int kRows>
HWY_INLINE void ScoreRows(const float* queries, int head_dim, const float* keys,
                          int tokens, float* scores) {
  constexpr int kStep = HWY_MAX(1, kTokenStep / kLanes);
  const int padded = PaddedTokens(tokens);
  int t = 0;
  if constexpr (kRows <= 3) {  // few rows: more tokens to fill the pipeline
    for (; t + 2 * kTokenStep <= padded; t += 2 * kTokenStep)
      ScoreBlock<kRows, 2 * kStep>(queries, head_dim, keys + t, scores + t);
  }
  for (; t < padded; t += kTokenStep)
    ScoreBlock<kRows, kStep>(queries, head_dim, keys + t, scores + t);
}

void ScoreTileImpl(const float* queries, int rows, int head_dim,
                   const float* keys, int tokens, float* scores) {
  int r = 0;
  for (; r + 4 <= rows; r += 4)
    ScoreRows<4>(queries + r * head_dim, head_dim, keys, tokens,
                 scores + r * kTileTokens);
  queries += r * head_dim;
  scores += r * kTileTokens;
  if (rows - r == 3) ScoreRows<3>(queries, head_dim, keys, tokens, scores);
  if (rows - r == 2) ScoreRows<2>(queries, head_dim, keys, tokens, scores);
  if (rows - r == 1) ScoreRows<1>(queries, head_dim, keys, tokens, scores);
}

void SoftmaxTileImpl(float* scores, int rows, int tokens, float* max,
                     float* sum, float* rescale) {
  const Floats d;
  const int padded = PaddedTokens(tokens);
  for (int r = 0; r < rows; ++r, scores += kTileTokens) {
    auto highest = hn::Set(d, max[r]);
    for (int t = 0; t < padded; t += kLanes)
      highest = hn::Max(highest, hn::Load(d, scores + t));
    highest = hn::MaxOfLanes(d, highest);
    auto total = hn::Zero(d);
    for (int t = 0; t < padded; t += kLanes) {
      const auto weight = hn::Exp(d, hn::Sub(hn::Load(d, scores + t), highest));
      hn::Store(weight, d, scores + t);
      total = hn::Add(total, weight);
    }
    rescale[r] = hn::GetLane(hn::Exp(d, hn::Sub(hn::Set(d, max[r]), highest)));
    max[r] = hn::GetLane(highest);
    sum[r] = sum[r] * rescale[r] + hn::GetLane(hn::SumOfLanes(d, total));
  }
}

// kRows rows and kVecs vectors of channels.
template <int kRows, int kVecs>
HWY_INLINE void AccumulateBlock(const float* weights, const float* rescale,
                                const float* values, int tokens, int head_dim,
                                float* out) {
  const Floats d;
  hn::Vec<Floats> sum[kRows][kVecs];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVecs; ++v)
      sum[r][v] = hn::Mul(hn::Load(d, out + r * head_dim + v * kLanes),
                          hn::Set(d, rescale[r]));
  for (int t = 0; t < tokens; ++t, values += head_dim) {
    hn::Vec<Floats> value[kVecs];
    for (int v = 0; v < kVecs; ++v) value[v] = hn::Load(d, values + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const auto weight = hn::Set(d, weights[r * kTileTokens + t]);
      for (int v = 0; v < kVecs; ++v)
        sum[r][v] = hn::MulAdd(weight, value[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVecs; ++v)
      hn::Store(sum[r][v], d, out + r * head_dim + v * kLanes);
}

template <int kRows>
HWY_INLINE void AccumulateRows(const float* weights, const float* rescale,
                               const float* values, int tokens, int head_dim,
                               float* out) {
  int c = 0;
  if constexpr (kRows <= 3) {
    for (; c + 4 * kLanes <= head_dim; c += 4 * kLanes)
      AccumulateBlock<kRows, 4>(weights, rescale, values + c, tokens, head_dim,
                                out + c);
  }
  for (; c + 2 * kLanes <= head_dim; c += 2 * kLanes)
    AccumulateBlock<kRows, 2>(weights, rescale, values + c, tokens, head_dim,
                              out + c);
  for (; c < head_dim; c += kLanes)
    AccumulateBlock<kRows, 1>(weights, rescale, values + c, tokens, head_dim,
                              out + c);
}

void AccumulateTileImpl(const float* weights, const float* rescale, int rows,
                        const float* values, int tokens, int head_dim,
                        float* out) {
  int r = 0;
  for (; r + 4 <= rows; r += 4)
    AccumulateRows<4>(weights + r * kTileTokens, rescale + r, values, tokens,
                      head_dim, out + r * head_dim);
  weights += r * kTileTokens;
  rescale += r;
  out += r * head_dim;
  if (rows - r == 3)
    AccumulateRows<3>(weights, rescale, values, tokens, head_dim, out);
  if (rows - r == 2)
    AccumulateRows<2>(weights, rescale, values, tokens, head_dim, out);
  if (rows - r == 1)
    AccumulateRows<1>(weights, rescale, values, tokens, head_dim, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace kvmix
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvmix {

HWY_EXPORT(HalfToFloatImpl);
HWY_EXPORT(HalfToFloatTransposedImpl);
HWY_EXPORT(ScoreTileImpl);
HWY_EXPORT(SoftmaxTileImpl);
HWY_EXPORT(AccumulateTileImpl);

void HalfToFloat(const Half* half, int64_t n, float* x) {
  HWY_DYNAMIC_DISPATCH(HalfToFloatImpl)(half, n, x);
}

void HalfToFloatTransposed(const Half* half, int tokens, int head_dim, float* x,
                           int64_t stride) {
  HWY_DYNAMIC_DISPATCH(HalfToFloatTransposedImpl)
  (half, tokens, head_dim, x, stride);
}

void ScoreTile(const float* queries, int rows, int head_dim, const float* keys,
               int tokens, float* scores) {
  HWY_DYNAMIC_DISPATCH(ScoreTileImpl)
  (queries, rows, head_dim, keys, tokens, scores);
}

void SoftmaxTile(float* scores, int rows, int tokens, float* max, float* sum,
                 float* rescale) {
  HWY_DYNAMIC_DISPATCH(SoftmaxTileImpl)
  (scores, rows, tokens, max, sum, rescale);
}

void AccumulateTile(const float* weights, const float* rescale, int rows,
                    const float* values, int tokens, int head_dim, float* out) {
  HWY_DYNAMIC_DISPATCH(AccumulateTileImpl)
  (weights, rescale, rows, values, tokens, head_dim, out);
}

}  // namespace kvmix
#endif  // HWY_ONCE
