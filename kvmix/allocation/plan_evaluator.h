// PlanEvaluator: what a plan costs when the model really runs under it. For
// allocators that search instead of adding up predicted losses; whoever has a
// model implements it.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvmix/cache_plan.pb.h"

namespace kvmix {

// Against the same model with a cache in full precision, nats a token, mean
// over the calibration prompts.
struct PlanLoss {
  double loss_difference = 0;  // of the cross-entropy; may be negative
  double kl_divergence = 0;
};

class PlanEvaluator {
 public:
  virtual ~PlanEvaluator() = default;
  // One for each plan, in order; the same plan has the same losses at every
  // call. Errors: those of running the model; Cancelled when interrupted.
  virtual absl::StatusOr<std::vector<PlanLoss>> Evaluate(
      absl::Span<const CachePlan> plans) const = 0;
};

}  // namespace kvmix
