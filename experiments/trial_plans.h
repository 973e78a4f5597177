// Trial plans: the model runs prompts under each of them, to see what they
// cost.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "experiments/method_caches.h"
#include "experiments/record.pb.h"
#include "experiments/runnable_method.h"
#include "kvmix/allocation/plan_evaluator.h"
#include "kvmix/importance_profile.pb.h"

namespace kvmix {

using Prompts = std::vector<std::vector<int32_t>>;

struct TrialResults {
  double full_loss = 0;          // of full precision, nats a token
  std::vector<PlanLoss> losses;  // of each plan
};

struct TrialOptions {
  // Prompts pass in chunks of so many tokens, each over the compressed cache of
  // all earlier ones.
  int chunk_tokens = 32;
  std::function<void()> pass_done = nullptr;  // called after every pass
  const std::atomic<bool>* stop = nullptr;
};

// One prompt under `plans`, with the policies and the full precision of
// `method`, sixteen plans in a pass beside full precision. Errors: those of
// EvaluateWindow.
absl::StatusOr<TrialResults> RunTrialPlans(const WhereToRun& where,
                                           const std::vector<int32_t>& tokens,
                                           absl::Span<const CachePlan> plans,
                                           const RunnableMethod& method,
                                           const TrialOptions& options);

int64_t NumTrialPasses(size_t num_plans);

// What plans are tried on.
struct TrialSetting {
  WhereToRun where;
  std::string model;                                 // fingerprint
  std::function<absl::StatusOr<Prompts>()> prompts;  // called when needed
  int chunk_tokens = 32;
  // What was measured is kept here and not measured again. Empty: nowhere.
  std::string folder = {};
  const std::atomic<bool>* stop = nullptr;
};

// Means over the prompts, which count alike. A plan is run once.
class ModelPlanEvaluator final : public PlanEvaluator {
 public:
  // `method`: its policies and its full precision, `policies` as text. Plans
  // are calibrated by `profile` (kvmix/importance/query_energy.h) before they
  // run.
  ModelPlanEvaluator(TrialSetting setting, RunnableMethod method,
                     std::string policies, ImportanceProfile profile)
      : setting_(std::move(setting)),
        method_(std::move(method)),
        policies_(std::move(policies)),
        profile_(std::move(profile)) {}

  absl::StatusOr<std::vector<PlanLoss>> Evaluate(
      absl::Span<const CachePlan> plans) const override;

 private:
  absl::Status Load() const;
  absl::Status Measure(const std::vector<CachePlan>& plans) const;
  absl::Status Keep() const;
  std::string Path() const;

  const TrialSetting setting_;
  const RunnableMethod method_;
  const std::string policies_;
  const ImportanceProfile profile_;
  mutable std::optional<Prompts> prompts_;
  mutable StoredPlanLosses known_;
};

}  // namespace kvmix
