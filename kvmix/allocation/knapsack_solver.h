// SolveKnapsack: the choices of least loss within a budget, exactly.
//
// The multiple-choice knapsack problem (Sinha and Zoltners, Operations Research
// 27, 1979) by dynamic programming over items: of partial choices only those
// stay that no other one beats in both bytes and loss, and of these only the
// ones that a Lagrangian bound on the remaining items does not rule out. Bytes
// are exact; nothing is rounded to a grid.
#pragma once

#include <cstdint>
#include <vector>

#include "kvmix/allocation/choice_table.h"

namespace kvmix {

// Of equal losses the fewest bytes. Precondition: the cheapest choices take
// budget_bytes at most; losses are finite.
std::vector<int> SolveKnapsack(const ChoiceTable& table, int64_t budget_bytes);

}  // namespace kvmix
