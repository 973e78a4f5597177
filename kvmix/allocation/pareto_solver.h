// SearchFront: plans that trade bytes against a loss which need not be a sum,
// found by NSGA-II (Deb, Pratap, Agarwal and Meyarivan, IEEE Transactions on
// Evolutionary Computation 6, 2002) as pagmo implements it.
//
// A candidate is a choice for each of some genes. What exceeds the budget is
// never shown to the loss, and ranks behind all that keeps to it, by its bytes
// (their constrained domination). Every candidate counts that was ever seen,
// not the last generation alone.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace kvmix {

using Genes = std::vector<int>;

struct FrontProblem {
  std::vector<int> num_choices;  // of each gene, at least 1
  std::function<int64_t(const Genes&)> bytes;
  // Losses of candidates within the budget, each asked for once. Lower is
  // better; must be finite.
  std::function<absl::StatusOr<std::vector<double>>(absl::Span<const Genes>)>
      losses;
  int64_t budget_bytes = 0;
  // The first ones of the first generation; the others are random. At least one
  // is within the budget.
  std::vector<Genes> start;
};

struct FrontOptions {
  int population = 0;   // a multiple of 4, at least 8
  int generations = 0;  // after the first
  uint64_t seed = 0;
  bool show_progress = false;
};

struct FrontPoint {
  Genes genes;
  int64_t bytes = 0;
  double loss = 0;
};

// Of all candidates seen within the budget those that no other one beats in
// both bytes and loss: bytes ascend, losses fall. The same with the same seed.
// Errors: those of `losses`.
absl::StatusOr<std::vector<FrontPoint>> SearchFront(
    const FrontProblem& problem, const FrontOptions& options);

}  // namespace kvmix
