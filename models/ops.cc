#include "models/ops.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/ops.cc"
// clang-format off
#include "hwy/foreach_target.h"  // before the others
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace kvmix::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using Floats = hn::CappedTag<float, 16>;

// Calls body(d, offset) with whole vectors, then with single lanes.
template <class Body>
HWY_INLINE void ForEachVector(int64_t size, const Body& body) {
  const Floats d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= size; i += lanes) body(d, i);
  for (; i < size; ++i) body(hn::CappedTag<float, 1>(), i);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V Sigmoid(D d, V x) {
  const V one = hn::Set(d, 1.0f);
  return hn::Div(one, hn::Add(one, hn::Exp(d, hn::Neg(x))));
}

void SwiGluLoop(const float* gate, const float* up, int64_t size, float* out) {
  ForEachVector(size, [=](auto d, int64_t i) HWY_ATTR {
    const auto g = hn::LoadU(d, gate + i);
    const auto u = hn::LoadU(d, up + i);
    hn::StoreU(hn::Mul(hn::Mul(g, Sigmoid(d, g)), u), d, out + i);
  });
}

void SwiGluGradientLoop(const float* gate, const float* up, const float* dout,
                        int64_t size, float* dgate, float* dup) {
  ForEachVector(size, [=](auto d, int64_t i) HWY_ATTR {
    const auto one = hn::Set(d, 1.0f);
    const auto g = hn::LoadU(d, gate + i);
    const auto u = hn::LoadU(d, up + i);
    const auto dy = hn::LoadU(d, dout + i);
    const auto s = Sigmoid(d, g);
    // silu' = s (1 + g (1 - s))
    const auto slope = hn::Mul(s, hn::MulAdd(g, hn::Sub(one, s), one));
    hn::StoreU(hn::Mul(hn::Mul(dy, u), slope), d, dgate + i);
    hn::StoreU(hn::Mul(dy, hn::Mul(g, s)), d, dup + i);
  });
}

// x becomes exp(scale * (x - max)); returns the sum of that.
double ExpLoop(float* x, int64_t size, float scale, float max) {
  const Floats d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  double sum = 0;
  int64_t i = 0;
  while (i + lanes <= size) {
    // Float sums of at most 64 vectors, then double.
    auto part = hn::Zero(d);
    const int64_t end = std::min(size - lanes, i + 63 * lanes);
    for (; i <= end; i += lanes) {
      const auto e =
          hn::Exp(d, hn::Mul(hn::Sub(hn::LoadU(d, x + i), hn::Set(d, max)),
                             hn::Set(d, scale)));
      hn::StoreU(e, d, x + i);
      part = hn::Add(part, e);
    }
    sum += hn::GetLane(hn::SumOfLanes(d, part));
  }
  const hn::CappedTag<float, 1> one;
  for (; i < size; ++i) {
    hn::StoreU(hn::Exp(one, hn::Set(one, (x[i] - max) * scale)), one, x + i);
    sum += x[i];
  }
  return sum;
}

void ScaleLoop(float* x, int64_t size, float factor) {
  ForEachVector(size, [=](auto d, int64_t i) HWY_ATTR {
    hn::StoreU(hn::Mul(hn::LoadU(d, x + i), hn::Set(d, factor)), d, x + i);
  });
}

float MaxLoop(const float* x, int64_t size) {
  const Floats d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  float max = x[0];
  int64_t i = 0;
  if (size >= lanes) {
    auto m = hn::LoadU(d, x);
    for (; i + lanes <= size; i += lanes) m = hn::Max(m, hn::LoadU(d, x + i));
    max = hn::GetLane(hn::MaxOfLanes(d, m));
  }
  for (; i < size; ++i) max = std::max(max, x[i]);
  return max;
}

void AddLoop(const float* y, int64_t size, float* x) {
  ForEachVector(size, [=](auto d, int64_t i) HWY_ATTR {
    hn::StoreU(hn::Add(hn::LoadU(d, x + i), hn::LoadU(d, y + i)), d, x + i);
  });
}

// p (dp - dot) scale, into dp.
void SoftmaxGradientLoop(const float* p, int64_t size, float dot, float scale,
                         float* dp) {
  ForEachVector(size, [=](auto d, int64_t i) HWY_ATTR {
    const auto centred = hn::Sub(hn::LoadU(d, dp + i), hn::Set(d, dot));
    hn::StoreU(
        hn::Mul(hn::Mul(hn::LoadU(d, p + i), centred), hn::Set(d, scale)), d,
        dp + i);
  });
}

// Four lanes of double, or as many of them as a vector has.
using Doubles = hn::CappedTag<double, 4>;
constexpr int kDoubleLanes = static_cast<int>(hn::MaxLanes(Doubles()));
HWY_INLINE hn::Vec<Doubles> LoadDoubles(const float* p) {
  return hn::PromoteTo(Doubles(), hn::LoadU(hn::Rebind<float, Doubles>(), p));
}

// In double, as four sums of every fourth product: the order, and so the
// result, is that of every instruction set. Products of floats are exact in
// double.
double DotLoop(const float* a, const float* b, int64_t size) {
  constexpr int kSums = 4 / kDoubleLanes;
  hn::Vec<Doubles> sum[kSums];
  for (int j = 0; j < kSums; ++j) sum[j] = hn::Zero(Doubles());
  int64_t i = 0;
  for (; i + 4 <= size; i += 4) {
    for (int j = 0; j < kSums; ++j) {
      const int64_t at = i + j * kDoubleLanes;
      sum[j] = hn::MulAdd(LoadDoubles(a + at), LoadDoubles(b + at), sum[j]);
    }
  }
  double sums[4];
  for (int j = 0; j < kSums; ++j)
    hn::StoreU(sum[j], Doubles(), sums + j * kDoubleLanes);
  for (; i < size; ++i) sums[0] += static_cast<double>(a[i]) * b[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// out = x inverse weight.
void NormLoop(const float* x, const float* weight, float inverse, int64_t size,
              float* out) {
  ForEachVector(size, [=](auto d, int64_t i) HWY_ATTR {
    const auto scaled = hn::Mul(hn::LoadU(d, x + i), hn::Set(d, inverse));
    hn::StoreU(hn::Mul(scaled, hn::LoadU(d, weight + i)), d, out + i);
  });
}

// dx = r (dout weight - x slope), in double.
void NormGradientLoop(const float* x, const float* weight, const float* dout,
                      double r, double slope, int64_t size, float* dx) {
  int64_t i = 0;
  for (; i + kDoubleLanes <= size; i += kDoubleLanes) {
    const auto g = hn::Mul(LoadDoubles(dout + i), LoadDoubles(weight + i));
    const auto along = hn::Mul(LoadDoubles(x + i), hn::Set(Doubles(), slope));
    const auto out = hn::Mul(hn::Set(Doubles(), r), hn::Sub(g, along));
    const hn::Rebind<float, Doubles> d;
    hn::StoreU(hn::DemoteTo(d, out), d, dx + i);
  }
  for (; i < size; ++i) {
    dx[i] = static_cast<float>(
        r * (static_cast<double>(dout[i]) * weight[i] - x[i] * slope));
  }
}

// Pairs (a, b) become (a cos - b sin, b cos + a sin).
void RotateLoop(float* a, float* b, int64_t size, const float* cos,
                const float* sin) {
  ForEachVector(size, [=](auto d, int64_t i) HWY_ATTR {
    const auto va = hn::LoadU(d, a + i);
    const auto vb = hn::LoadU(d, b + i);
    const auto c = hn::LoadU(d, cos + i);
    const auto s = hn::LoadU(d, sin + i);
    hn::StoreU(hn::Sub(hn::Mul(va, c), hn::Mul(vb, s)), d, a + i);
    hn::StoreU(hn::Add(hn::Mul(vb, c), hn::Mul(va, s)), d, b + i);
  });
}

}  // namespace kvmix::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvmix {
namespace {

HWY_EXPORT(SwiGluLoop);
HWY_EXPORT(SwiGluGradientLoop);
HWY_EXPORT(ExpLoop);
HWY_EXPORT(ScaleLoop);
HWY_EXPORT(MaxLoop);
HWY_EXPORT(AddLoop);
HWY_EXPORT(SoftmaxGradientLoop);
HWY_EXPORT(DotLoop);
HWY_EXPORT(NormLoop);
HWY_EXPORT(NormGradientLoop);
HWY_EXPORT(RotateLoop);

double Dot(const float* a, const float* b, int64_t size) {
  return HWY_DYNAMIC_DISPATCH(DotLoop)(a, b, size);
}

double InverseRms(const float* x, float eps, int64_t size) {
  return 1 / std::sqrt(Dot(x, x, size) / static_cast<double>(size) + eps);
}

// Llama 3.1's rule: wavelengths that the trained context holds often stay,
// those it never held once are stretched, between them the two are mixed.
double Llama3Frequency(double f, const RopeScaling& scaling) {
  const double wavelength = 2 * std::numbers::pi / f;
  const double turns = scaling.original_max_position / wavelength;
  if (turns < scaling.low_freq_factor) return f / scaling.factor;
  if (turns > scaling.high_freq_factor) return f;
  const double kept = (turns - scaling.low_freq_factor) /
                      (scaling.high_freq_factor - scaling.low_freq_factor);
  return (1 - kept) * f / scaling.factor + kept * f;
}

// YaRN's ramp over pairs i: 1 (kept) below `low`, 0 (divided by factor) above
// `high` (arXiv 2309.00071, section 3.2; index form as in its reference code).
double YarnFrequency(double f, int i, int head_dim, double theta,
                     const RopeScaling& scaling) {
  const auto pair_of_turns = [&](double turns) {
    return head_dim *
           std::log(scaling.original_max_position /
                    (turns * 2 * std::numbers::pi)) /
           (2 * std::log(theta));
  };
  double low = pair_of_turns(scaling.beta_fast);
  double high = pair_of_turns(scaling.beta_slow);
  if (scaling.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, head_dim - 1.0);
  if (low == high) high += 0.001;
  const double kept = 1 - std::clamp((i - low) / (high - low), 0.0, 1.0);
  return (1 - kept) * f / scaling.factor + kept * f;
}

}  // namespace

void RmsNorm(const float* x, const float* weight, float eps, int64_t size,
             float* out) {
  const float inverse = static_cast<float>(InverseRms(x, eps, size));
  HWY_DYNAMIC_DISPATCH(NormLoop)(x, weight, inverse, size, out);
}

void RmsNormGradient(const float* x, const float* weight, float eps,
                     const float* dout, int64_t size, float* dx) {
  // With r = 1 / rms: dx = r (g - x r^2 mean(g x)), g = dout weight.
  const double r = InverseRms(x, eps, size);
  double mean = 0;
  for (int64_t i = 0; i < size; ++i)
    mean += static_cast<double>(dout[i]) * weight[i] * x[i];
  mean /= static_cast<double>(size);
  HWY_DYNAMIC_DISPATCH(NormGradientLoop)
  (x, weight, dout, r, r * r * mean, size, dx);
}

Rope::Rope(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  const int pairs = config.head_dim / 2;
  frequencies_.resize(pairs);
  for (int i = 0; i < pairs; ++i) {
    double f = std::pow(static_cast<double>(config.rope_theta),
                        -2.0 * i / config.head_dim);
    switch (scaling.type) {
      case RopeScalingType::kNone:
        break;
      case RopeScalingType::kLinear:
        f /= scaling.factor;
        break;
      case RopeScalingType::kLlama3:
        f = Llama3Frequency(f, scaling);
        break;
      case RopeScalingType::kYarn:
        f = YarnFrequency(f, i, config.head_dim, config.rope_theta, scaling);
        break;
      case RopeScalingType::kPerChannel:
        f /= scaling.frequency_divisors[i];
        break;
    }
    frequencies_[i] = static_cast<float>(f);
  }
  if (scaling.type == RopeScalingType::kYarn)
    attention_factor_ = scaling.attention_factor;
}

void Rope::Angles(int64_t position, float* cos, float* sin) const {
  for (size_t i = 0; i < frequencies_.size(); ++i) {
    const float angle = frequencies_[i] * static_cast<float>(position);
    cos[i] = static_cast<float>(std::cos(static_cast<double>(angle)) *
                                attention_factor_);
    sin[i] = static_cast<float>(std::sin(static_cast<double>(angle)) *
                                attention_factor_);
  }
}

std::shared_ptr<const KeyRotation> MakeKeyRotation(const ModelConfig& config) {
  return std::make_shared<const KeyRotation>(
      config.head_dim,
      [rope = Rope(config)](int64_t position, float* cos, float* sin) {
        rope.Angles(position, cos, sin);
      });
}

void Rotate(float* x, int head_dim, const float* cos, const float* sin) {
  const int half = head_dim / 2;
  HWY_DYNAMIC_DISPATCH(RotateLoop)(x, x + half, half, cos, sin);
}

void RotateBack(float* x, int head_dim, const float* cos, const float* sin) {
  // The other way round: as if the halves changed places.
  const int half = head_dim / 2;
  HWY_DYNAMIC_DISPATCH(RotateLoop)(x + half, x, half, cos, sin);
}

void NormAndRotateHeads(const ModelConfig& config,
                        const std::vector<float>& norm, int num_heads,
                        const float* cos, const float* sin, float* x) {
  for (int h = 0; h < num_heads; ++h) {
    float* head = x + int64_t{h} * config.head_dim;
    if (!norm.empty()) {
      RmsNorm(head, norm.data(), config.rms_norm_eps, config.head_dim, head);
    }
    Rotate(head, config.head_dim, cos, sin);
  }
}

float AttentionScale(const ModelConfig& config) {
  return 1 / std::sqrt(static_cast<float>(config.head_dim));
}

void SwiGlu(const float* gate, const float* up, int64_t size, float* out) {
  HWY_DYNAMIC_DISPATCH(SwiGluLoop)(gate, up, size, out);
}

void SwiGluGradient(const float* gate, const float* up, const float* dout,
                    int64_t size, float* dgate, float* dup) {
  HWY_DYNAMIC_DISPATCH(SwiGluGradientLoop)(gate, up, dout, size, dgate, dup);
}

void Softmax(float* x, int64_t size, float scale) {
  const float max = HWY_DYNAMIC_DISPATCH(MaxLoop)(x, size);
  const double sum = HWY_DYNAMIC_DISPATCH(ExpLoop)(x, size, scale, max);
  HWY_DYNAMIC_DISPATCH(ScaleLoop)(x, size, static_cast<float>(1 / sum));
}

void SoftmaxGradient(const float* p, int64_t size, float scale, float* dp) {
  const float dot = static_cast<float>(Dot(p, dp, size));
  HWY_DYNAMIC_DISPATCH(SoftmaxGradientLoop)(p, size, dot, scale, dp);
}

double CrossEntropyGradient(float* logits, int64_t vocab_size, int32_t label,
                            float gradient_scale) {
  const float max = HWY_DYNAMIC_DISPATCH(MaxLoop)(logits, vocab_size);
  const double label_logit = logits[label];
  const double sum = HWY_DYNAMIC_DISPATCH(ExpLoop)(logits, vocab_size, 1, max);
  HWY_DYNAMIC_DISPATCH(ScaleLoop)
  (logits, vocab_size, static_cast<float>(gradient_scale / sum));
  logits[label] -= gradient_scale;
  return std::log(sum) + max - label_logit;
}

void Add(const float* y, int64_t size, float* x) {
  HWY_DYNAMIC_DISPATCH(AddLoop)(y, size, x);
}

}  // namespace kvmix
#endif  // HWY_ONCE
