// The operations of a transformer layer besides matrix products and attention,
// each on one row, and their gradients.
//
// A row's result depends on that row alone. D = head_dim.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kvmix/key_rotation.h"
#include "models/model_config.h"

namespace kvmix {

// out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]. out may be x.
void RmsNorm(const float* x, const float* weight, float eps, int64_t size,
             float* out);
// dx = (d out / d x)^T dout. dx may be dout.
void RmsNormGradient(const float* x, const float* weight, float eps,
                     const float* dout, int64_t size, float* dx);

// Rotary position embedding (Su et al., "RoFormer", arXiv 2104.09864) in the
// rotate-half order: elements i and i + D / 2 of a head turn by position *
// frequency i.
class Rope {
 public:
  explicit Rope(const ModelConfig& config);

  // cos and sin of a position's angles, [D / 2] each, times the scaling's
  // attention factor. Angles are rounded to float first, as PyTorch's are.
  void Angles(int64_t position, float* cos, float* sin) const;

  const std::vector<float>& frequencies() const { return frequencies_; }

 private:
  std::vector<float> frequencies_;  // [D / 2], radians per position
  float attention_factor_ = 1;
};

// How a model of this shape turns its keys.
std::shared_ptr<const KeyRotation> MakeKeyRotation(const ModelConfig& config);

// Turns a head's vector x [D] in place.
void Rotate(float* x, int head_dim, const float* cos, const float* sin);
// The transpose of that: the gradient before from the gradient after.
void RotateBack(float* x, int head_dim, const float* cos, const float* sin);

// Per head, in place: RMSNorm if norm [D] is not empty, then Rotate. x [heads,
// D].
void NormAndRotateHeads(const ModelConfig& config,
                        const std::vector<float>& norm, int num_heads,
                        const float* cos, const float* sin, float* x);

// 1 / sqrt(D).
float AttentionScale(const ModelConfig& config);

// out[i] = silu(gate[i]) * up[i], silu(x) = x / (1 + exp(-x)).
void SwiGlu(const float* gate, const float* up, int64_t size, float* out);
// dgate and dup may be gate and up.
void SwiGluGradient(const float* gate, const float* up, const float* dout,
                    int64_t size, float* dgate, float* dup);

// x becomes softmax(scale * x).
void Softmax(float* x, int64_t size, float scale);

// Gradient of x' = softmax(scale * x): dx' becomes dx. p is the softmax.
void SoftmaxGradient(const float* p, int64_t size, float scale, float* dp);

// Returns log(sum(exp(logits))) - logits[label], in nats, and makes `logits`
// its gradient times `gradient_scale`.
double CrossEntropyGradient(float* logits, int64_t vocab_size, int32_t label,
                            float gradient_scale);

// x += y.
void Add(const float* y, int64_t size, float* x);

}  // namespace kvmix
