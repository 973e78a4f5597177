// Rotation: a random orthogonal matrix that costs D log D, for spreading
// outlier channels over all channels before quantization (QuaRot, Ashkboos et
// al., arXiv 2404.00456; QuIP#, Tseng et al., arXiv 2402.04396).
//
//   R x = 1/sqrt(n) H diag(signs) x
// H is the Walsh-Hadamard matrix of size n, the largest power of two that
// divides D, applied to each n channels; signs come from `seed`. R is
// orthogonal: products of rotated queries with rotated keys are those of the
// unrotated ones.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "quant/quantizer.h"

namespace kvmix {

class Rotation {
 public:
  Rotation(int dim, uint64_t seed);
  // Vectors of `dim` numbers, `step` apart, in place; vector i starts at
  // x + i * next.
  void Forward(float* x, int64_t step, int64_t next, int64_t count) const;
  void Inverse(float* x, int64_t step, int64_t next, int64_t count) const;

 private:
  void Hadamard(float* x, int64_t step) const;
  const int dim_;
  const int block_;  // n
  std::vector<float> signs_;
};

// `inner` on rotated tokens; reading rotates them back.
std::unique_ptr<BlockCodec> MakeRotatedCodec(std::unique_ptr<BlockCodec> inner,
                                             Side side, int head_dim,
                                             uint64_t seed);

}  // namespace kvmix
