// How alike two rankings of the same things are.
#pragma once

#include <vector>

namespace kvmix {

// Spearman's rho: the correlation of ranks, equal values having the mean of
// their ranks. 0 if all of a or all of b are equal: they rank nothing.
// Precondition: as many in both.
double Spearman(const std::vector<double>& a, const std::vector<double>& b);

// Kendall's tau-b: pairs that both rank alike minus those they rank against
// each other, over the geometric mean of the pairs that each ranks at all. 0 as
// above.
double Kendall(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace kvmix
