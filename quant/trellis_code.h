// Trellis-coded quantization of normal numbers (Marcellin and Fischer, IEEE
// Transactions on Communications 38, 1990) by Ungerboeck's code of 64 states:
// as many bits a number as a scalar quantizer, and about two thirds of its
// error.
//
// A scalar quantizer of b bits has 2^b levels. Here there are twice as many,
// and the numbers before it say which half of them a number can have. Levels
// are ascending; subset s of four has levels s, s + 4, s + 8, ...
//   level_t = levels[4 (code_t >> 1) + subset(w_t)]
//   w_t     the lowest bits of codes t, t - 1, ... t - 6, the newest lowest;
//           those before the first code are 0
//   subset(w) = 2 parity(w & 0103) + parity(w & 024)      (octal)
// parity(w & 024) does not depend on the newest bit: a number has levels of
// subsets 0 and 2, or of 1 and 3, and its lowest bit says of which of the two.
// The encoder finds the codes of least squared error (Viterbi).
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "quant/normal_code.h"

namespace kvmix {

class TrellisCode final : public NormalCode {
 public:
  // bits in [1, MaxNormalCodeBits(trellis)].
  explicit TrellisCode(int bits);

  // 128 additions a number. One that is not finite counts as 0.
  void Encode(const float* x, int n, uint32_t* codes) const override;
  void Decode(const uint32_t* codes, int n, float* levels) const override;
  double error() const override { return error_; }
  const std::vector<float>& levels() const { return levels_; }

 private:
  static constexpr int kStates = 64;  // the lowest bits of 6 codes

  // The nearest level of each subset.
  struct Nearest {
    std::array<int, 4> level;
    std::array<float, 4> distance;  // squared
  };
  Nearest NearestOf(float x) const;

  std::vector<float> levels_;  // 2^(bits + 1)
  const double error_;
  std::array<uint8_t, 2 * kStates> subset_;  // of w
};

}  // namespace kvmix
