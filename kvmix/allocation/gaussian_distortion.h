// GaussianDistortion: what a format loses on numbers that nobody knows better.
#pragma once

#include "absl/status/statusor.h"
#include "quant/quantizer.h"

namespace kvmix {

// Mean squared error of standard normal numbers, packed and read again; 0 for
// full precision. Seeded: the same at every call. About 4^-bits times a
// constant of the scheme.
absl::StatusOr<double> GaussianDistortion(const QuantFormat& format, Side side,
                                          int head_dim);

}  // namespace kvmix
