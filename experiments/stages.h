// An experiment in four stages; each hands the next one a single type.
//
//   prompts   --Profile-->   StoredProfile   how much each layer matters
//             --Allocate-->  RunnableMethod  bits of each layer, and the
//             policies
//   windows   --Evaluate-->  WindowRecords   scores of every token, bytes
//             --Report-->    files           experiments/report.h
//
// run_experiment.cc calls them in this order, once for every method, and
// measures speed between the last two (experiments/speed.h).
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "experiments/evaluate.h"
#include "experiments/experiment.pb.h"
#include "experiments/loaded_model.h"
#include "experiments/observe_prompts.h"
#include "experiments/offered_formats.h"
#include "experiments/record.pb.h"
#include "experiments/trial_plans.h"
#include "experiments/windows.h"

namespace kvmix {

// Shows the estimator every layer on every prompt: one forward pass each, and
// one backward pass if it wants gradients. The profile depends on the model,
// the prompts, the estimator and the seed; StoredProfile::key names just that.
struct ProfileRequest {
  Component estimator;
  // Of the estimators that look at formats; see OfferedFormats.
  FormatChoices formats;
  // HEAD: these also give the losses of single KV heads.
  CachePlan::Granularity granularity = CachePlan::LAYER;
  // Of those that try plans (ProfileConfig::trial_chunk_tokens), and of their
  // caches.
  int trial_chunk_tokens = 32;
  CachePlan::FullPrecision full_precision = CachePlan::HALF;
  // Called only if the estimator needs the model.
  std::function<absl::StatusOr<Prompts>()> prompts;
  uint64_t seed = 0;
  // The profile is read from here if it is there and kept here otherwise, so
  // that experiments which differ in anything else profile once. Empty: never.
  std::string folder;
  // Also times the forward pass alone (StoredProfile::forward_seconds).
  bool time_forward = false;
  const std::atomic<bool>* stop = nullptr;
};
// What the config says of a profile by `estimator`; it is kept below the
// config's output. Config and model must outlive the request.
ProfileRequest ProfileRequestOf(const ExperimentConfig& config,
                                const LoadedModel& model,
                                const Component& estimator,
                                FormatChoices formats,
                                CachePlan::Granularity granularity,
                                const std::atomic<bool>* stop);
// A profile read from disk carries no times.
absl::StatusOr<StoredProfile> Profile(LoadedModel& model,
                                      const ProfileRequest& request);

// Turns a profile into a plan and makes the method's policies. `profile` may be
// empty for a method that needs none; see NeedsProfile. Costs of a budget with
// a context_length are measured on caches filled as `evaluation` says. An
// allocator that has plans run does so on `trials`; null: there is no model.
// Errors: a plan above the method's budget.
absl::StatusOr<RunnableMethod> Allocate(const Method& method,
                                        const ImportanceProfile& profile,
                                        const CacheShape& shape,
                                        const Evaluation& evaluation,
                                        uint64_t seed,
                                        const TrialSetting* trials = nullptr);

absl::StatusOr<bool> NeedsProfile(const Method& method);

// The profile's key depends on the formats; empty if it does not look at any.
absl::StatusOr<FormatChoices> FormatsToProfile(const Method& method,
                                               int head_dim);

// What a plan of the method costs under its budget; null if it has none.
// Allocate and plan tables ask it.
struct BudgetedFormats {
  FormatChoices choices;
  std::unique_ptr<LayerCosts> costs;
  int64_t budget_bytes = 0;
};
absl::StatusOr<std::unique_ptr<BudgetedFormats>> FormatsUnderBudget(
    const Method& method, const CacheShape& shape,
    const Evaluation& evaluation);

// Windows that are done are kept in `folder` and not run again, as long as they
// carry the same fingerprint; so an interrupted run goes on where it stopped.
struct EvaluateRequest {
  absl::Span<const RunnableMethod> methods;  // the first is full precision
  absl::Span<const Window> windows;
  Evaluation evaluation;
  std::string fingerprint;
  int dataset = 0;  // its index, and its name for the progress bar
  std::string name;
  std::string folder;  // empty: keep nothing
  const std::atomic<bool>* stop = nullptr;
  const FullPrecisionStore* store = nullptr;  // see EvaluateWindow
};
// evaluated: windows that were run, the others having been read.
absl::StatusOr<std::vector<WindowRecord>> Evaluate(
    LoadedModel& model, const EvaluateRequest& request, int* evaluated);

}  // namespace kvmix
