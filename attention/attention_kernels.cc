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

using Floats = hn::CappedTag<float, kTokenStep>;
constexpr int kLanes = HWY_MIN(HWY_LANES(float), kTokenStep);

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
  constexpr int kStep = kTokenStep / kLanes;
  // As many vectors as fill the pipeline and fit the registers.
  constexpr int kMany = HWY_MAX(kStep, kLanes == 16 ? 4 : kRows <= 3 ? 4 : 2);
  const int padded = PaddedTokens(tokens);
  int t = 0;
  for (; t + kMany * kLanes <= padded; t += kMany * kLanes)
    ScoreBlock<kRows, kMany>(queries, head_dim, keys + t, scores + t);
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

void SoftmaxTileImpl(float* scores, int64_t stride, int rows, int tokens,
                     float* max, float* sum, float* rescale) {
  const Floats d;
  const int padded = PaddedTokens(tokens);
  for (int r = 0; r < rows; ++r, scores += stride) {
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
template <int kRows, int kVecs, class D>
HWY_INLINE void AccumulateBlock(D d, const float* weights, const float* rescale,
                                const float* values, int tokens, int head_dim,
                                float* out) {
  const int lanes = static_cast<int>(hn::Lanes(d));
  hn::Vec<D> sum[kRows][kVecs];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVecs; ++v)
      sum[r][v] = hn::Mul(hn::LoadU(d, out + r * head_dim + v * lanes),
                          hn::Set(d, rescale[r]));
  for (int t = 0; t < tokens; ++t, values += head_dim) {
    hn::Vec<D> value[kVecs];
    for (int v = 0; v < kVecs; ++v) value[v] = hn::LoadU(d, values + v * lanes);
    for (int r = 0; r < kRows; ++r) {
      const auto weight = hn::Set(d, weights[r * kTileTokens + t]);
      for (int v = 0; v < kVecs; ++v)
        sum[r][v] = hn::MulAdd(weight, value[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVecs; ++v)
      hn::StoreU(sum[r][v], d, out + r * head_dim + v * lanes);
}

template <int kRows>
HWY_INLINE void AccumulateRows(const float* weights, const float* rescale,
                               const float* values, int tokens, int head_dim,
                               float* out) {
  const Floats d;
  constexpr int kMany = kLanes == 16 || kRows <= 3 ? 4 : 2;
  int c = 0;
  for (; c + kMany * kLanes <= head_dim; c += kMany * kLanes)
    AccumulateBlock<kRows, kMany>(d, weights, rescale, values + c, tokens,
                                  head_dim, out + c);
  for (; c + kLanes <= head_dim; c += kLanes)
    AccumulateBlock<kRows, 1>(d, weights, rescale, values + c, tokens, head_dim,
                              out + c);
  if (c < head_dim)  // a multiple of 8
    AccumulateBlock<kRows, 1>(hn::CappedTag<float, 8>(), weights, rescale,
                              values + c, tokens, head_dim, out + c);
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

HWY_EXPORT(ScoreTileImpl);
HWY_EXPORT(SoftmaxTileImpl);
HWY_EXPORT(AccumulateTileImpl);

void ScoreTile(const float* queries, int rows, int head_dim, const float* keys,
               int tokens, float* scores) {
  HWY_DYNAMIC_DISPATCH(ScoreTileImpl)
  (queries, rows, head_dim, keys, tokens, scores);
}

void SoftmaxTile(float* scores, int64_t stride, int rows, int tokens,
                 float* max, float* sum, float* rescale) {
  HWY_DYNAMIC_DISPATCH(SoftmaxTileImpl)
  (scores, stride, rows, tokens, max, sum, rescale);
}

void AccumulateTile(const float* weights, const float* rescale, int rows,
                    const float* values, int tokens, int head_dim, float* out) {
  HWY_DYNAMIC_DISPATCH(AccumulateTileImpl)
  (weights, rescale, rows, values, tokens, head_dim, out);
}

}  // namespace kvmix
#endif  // HWY_ONCE
