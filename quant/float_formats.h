// Floats of 4 and 8 bits: what every code means.
//
//   E4M3  1 sign, 4 exponent (bias 7), 3 mantissa bits; largest 448; codes 0x7f
//         and 0xff are NaN, there are no infinities
//   E5M2  1, 5 (bias 15), 2; largest 57344; infinities and NaN as in IEEE
//   E2M1  1, 2 (bias 1), 1: 0, 0.5, 1, 1.5, 2, 3, 4, 6
//   E8M0  a power of two, 2^(code - 127); 255 is NaN
// (OCP 8-bit Floating Point Specification 1.0; OCP Microscaling Formats 1.0.)
#pragma once

#include <cstdint>
#include <vector>

namespace kvmix {

// The number of each code.
std::vector<float> E4M3Values();
std::vector<float> E5M2Values();
std::vector<float> E2M1Values();
float E8M0Value(uint32_t code);

}  // namespace kvmix
