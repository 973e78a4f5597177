#include "quant/float_formats.h"

#include <cmath>
#include <limits>

namespace kvmix {
namespace {

// Numbers of a float with sign, `exponent_bits` and `mantissa_bits`, as if no
// code were special.
std::vector<float> FiniteValues(int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const uint32_t half = 1u << (exponent_bits + mantissa_bits);
  std::vector<float> values(2 * half);
  for (uint32_t code = 0; code < half; ++code) {
    const int exponent = static_cast<int>(code >> mantissa_bits);
    const uint32_t mantissa = code & ((1u << mantissa_bits) - 1);
    const uint32_t hidden = exponent > 0 ? 1u << mantissa_bits : 0;
    const int power = (exponent > 0 ? exponent : 1) - bias - mantissa_bits;
    values[code] = std::ldexp(static_cast<float>(hidden | mantissa), power);
    values[code + half] = -values[code];
  }
  return values;
}

}  // namespace

std::vector<float> E4M3Values() {
  std::vector<float> values = FiniteValues(4, 3);
  values[0x7f] = values[0xff] = std::numeric_limits<float>::quiet_NaN();
  return values;
}

std::vector<float> E5M2Values() {
  std::vector<float> values = FiniteValues(5, 2);
  const float infinity = std::numeric_limits<float>::infinity();
  for (const uint32_t sign : {0x00u, 0x80u}) {
    values[sign | 0x7c] = sign == 0 ? infinity : -infinity;
    for (const uint32_t code : {0x7du, 0x7eu, 0x7fu})
      values[sign | code] = std::numeric_limits<float>::quiet_NaN();
  }
  return values;
}

std::vector<float> E2M1Values() { return FiniteValues(2, 1); }

float E8M0Value(uint32_t code) {
  return code == 255 ? std::numeric_limits<float>::quiet_NaN()
                     : std::ldexp(1.0f, static_cast<int>(code) - 127);
}

}  // namespace kvmix
