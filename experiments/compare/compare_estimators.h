// Estimators side by side on the same prompts: how well each ranks layers,
// beside an oracle that measures them one by one, how far its ranking depends
// on the prompts, and what it costs.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "experiments/loaded_model.h"
#include "experiments/observe_prompts.h"
#include "experiments/table.h"
#include "kvmix/base/component.pb.h"
#include "kvmix/cache_plan.pb.h"

namespace kvmix {

struct CompareOptions {
  std::vector<Component> estimators;
  Component oracle;
  FormatChoices formats;  // scores are of the first
  int trial_chunk_tokens = 32;
  std::function<absl::StatusOr<Prompts>(uint64_t seed)> prompts;
  uint64_t seed = 1;
  int resamples = 1000;  // of the bootstrap
  int seeds = 1;         // prompts and estimators are made with so many seeds
  const std::atomic<bool>* stop = nullptr;
};

// Of keys or of values.
struct RankAgreement {
  // With the oracle over all prompts, and the middle 95 % over bootstrap
  // resamples of the prompts, the same for the estimator and the oracle.
  double spearman = 0, spearman_low = 0, spearman_high = 0;
  double kendall = 0;
  // Mean Spearman correlation between the scores of two random halves of the
  // prompts; NaN with fewer than two prompts, or if no prompt is looked at.
  double halves = 0;
  // Mean Spearman correlation between the first seed's scores and another's;
  // NaN with a single seed.
  double seeds = 0;
};

struct EstimatorRow {
  std::string name;
  std::string unit;
  RankAgreement key, value;
  // With the oracle, over keys and values of all layers together; NaN if the
  // unit is RANK_ONLY, for which keys and values cannot be compared.
  double spearman_all = 0;
  double seconds = 0;  // for the prompts of one seed
};

struct Comparison {
  std::string oracle;
  int num_prompts = 0;
  int64_t num_tokens = 0;
  double forward_seconds = 0;      // of the forward pass alone, all prompts
  std::vector<EstimatorRow> rows;  // as the options name them, the oracle first
};

// Errors: those of the estimators and of the model.
absl::StatusOr<Comparison> CompareEstimators(LoadedModel& model,
                                             const CompareOptions& options);

// The best first; the rounded one for people, the other for programs.
Table ComparisonTable(const Comparison& comparison);
Table FullComparisonTable(const Comparison& comparison);
// Rank correlation of keys and of values against cost.
std::string ComparisonSvg(const Comparison& comparison,
                          const std::string& title);

}  // namespace kvmix
