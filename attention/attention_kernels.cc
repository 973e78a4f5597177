#include "attention/attention_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/attention_kernels.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "attention/reduce-inl.h"
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

// 2^x for x <= 0, to a relative 2e-9 and float rounding; 0 below 2^-126,
// the least normal float. The polynomial is the minimax one of degree 6 on
// [-1/2, 1/2] that is 1 at 0.
HWY_INLINE hn::Vec<Floats> Exp2(hn::Vec<Floats> x) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  // Adding it rounds to an integer, which the low bits then hold.
  const auto magic = hn::Set(d, 12582912.0f);  // 1.5 * 2^23
  const auto shifted = hn::Add(x, magic);
  const auto r = hn::Sub(x, hn::Sub(shifted, magic));
  auto p = hn::Set(d, 1.53533619e-4f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.33988744e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 9.61843736e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.55033247e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 2.40226479e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 6.93147203e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  const auto power = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  // Further down, p is anything.
  return hn::IfThenElseZero(hn::Ge(x, hn::Set(d, -126.0f)),
                            hn::BitCast(d, hn::Add(hn::BitCast(di, p), power)));
}

// Rows that are reduced together.
constexpr int kTogether = 4;

// Of kRows rows.
template <int kRows>
HWY_INLINE void SoftmaxRows(float* scores, int64_t stride, int padded,
                            float* max, float* sum, float* rescale) {
  const Floats d;
  hn::Vec<Floats> highest[kTogether], total[kTogether];
  for (int r = 0; r < kTogether; ++r) {
    highest[r] = hn::Set(d, r < kRows ? max[r] : kNoScore);
    total[r] = hn::Zero(d);
  }
  for (int t = 0; t < padded; t += kLanes)
    for (int r = 0; r < kRows; ++r)
      highest[r] = hn::Max(highest[r], hn::Load(d, scores + r * stride + t));
  alignas(64) float now[kTokenStep] = {}, change[kTokenStep] = {};
  reduce::ReduceFour(d, reduce::MaxOp(), highest[0], highest[1], highest[2],
                     highest[3], now);
  for (int r = 0; r < kRows; ++r) {
    highest[r] = hn::Set(d, now[r]);
    change[r] = max[r] - now[r];
    max[r] = now[r];
  }
  for (int t = 0; t < padded; t += kLanes) {
    for (int r = 0; r < kRows; ++r) {
      float* const at = scores + r * stride + t;
      const auto w = Exp2(hn::Sub(hn::Load(d, at), highest[r]));
      hn::Store(w, d, at);
      total[r] = hn::Add(total[r], w);
    }
  }
  reduce::ReduceFour(d, reduce::AddOp(), total[0], total[1], total[2], total[3],
                     now);
  for (int i = 0; i < kTogether; i += kLanes)
    hn::Store(Exp2(hn::Load(d, change + i)), d, change + i);
  for (int r = 0; r < kRows; ++r) {
    rescale[r] = change[r];
    sum[r] = sum[r] * change[r] + now[r];
  }
}

void SoftmaxTileImpl(float* scores, int64_t stride, int rows, int tokens,
                     float* max, float* sum, float* rescale) {
  const int padded = PaddedTokens(tokens);
  int r = 0;
  for (; r + 4 <= rows; r += 4)
    SoftmaxRows<4>(scores + r * stride, stride, padded, max + r, sum + r,
                   rescale + r);
  scores += r * stride;
  max += r;
  sum += r;
  rescale += r;
  if (rows - r == 3) SoftmaxRows<3>(scores, stride, padded, max, sum, rescale);
  if (rows - r == 2) SoftmaxRows<2>(scores, stride, padded, max, sum, rescale);
  if (rows - r == 1) SoftmaxRows<1>(scores, stride, padded, max, sum, rescale);
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
