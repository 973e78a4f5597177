// The best scalar quantizer of a standard normal variable (Lloyd, Max): levels
// are the means of their cells, and cells end half-way between levels.
#pragma once

#include <vector>

namespace kvmix {

// 2^bits levels, ascending, symmetric. bits in [1, 8].
const std::vector<float>& NormalCodebook(int bits);

// Its mean squared error on a standard normal variable.
double NormalCodebookError(int bits);

}  // namespace kvmix
