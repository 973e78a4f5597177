// Rows of halves to floats and back, vectorised.
#pragma once

#include <cstdint>

#include "kvmix/base/half.h"

namespace kvmix {

// x [n] = half [n]
void HalfToFloat(const Half* half, int64_t n, float* x);
// half [n] = x [n], ties to even.
void FloatToHalf(const float* x, int64_t n, Half* half);

}  // namespace kvmix
