// NormalCode: codes of a fixed number of bits for rows of standard normal
// numbers. Two kinds: a scalar one, where each code names a level of the best
// codebook (normal_codebook.h), and a trellis (trellis_code.h).
#pragma once

#include <cstdint>

namespace kvmix {

class NormalCode {
 public:
  virtual ~NormalCode() = default;
  // x [n] -> codes [n]. A number that is not finite may become any.
  virtual void Encode(const float* x, int n, uint32_t* codes) const = 0;
  // The numbers that codes stand for, [n]; n is that of Encode.
  virtual void Decode(const uint32_t* codes, int n, float* levels) const = 0;
  // Mean squared error on standard normal numbers.
  virtual double error() const = 0;
};

// Bits of a code: 1 to this.
constexpr int MaxNormalCodeBits(bool trellis) { return trellis ? 7 : 8; }

// Lives as long as the program.
const NormalCode& NormalCodeOfBits(bool trellis, int bits);

}  // namespace kvmix
