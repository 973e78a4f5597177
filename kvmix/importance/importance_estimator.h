// ImportanceEstimator: ranks layers by how much the precision of their keys and
// values matters.
//
// An estimator never calls the model. It declares the signals it needs, is
// shown one LayerTrace per layer and prompt in any order of layers, and answers
// with a profile. One that must see the model with compressed caches lists
// trial plans and is told, for each plan and prompt, what the plan cost.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvmix/cache_plan.pb.h"
#include "kvmix/importance_profile.pb.h"
#include "kvmix/layer_trace.h"

namespace kvmix {

struct ProfileContext {
  int num_layers = 0;
  uint64_t seed = 0;
  int head_dim = 0;
  // At least one for keys and one for values if NeedsFormats(); otherwise null.
  const FormatChoices* formats = nullptr;
  // HEAD: one that looks at formats also gives the losses of single KV heads.
  CachePlan::Granularity granularity = CachePlan::LAYER;
  int num_kv_heads = 0;
};

// A prompt under a trial plan, every token quantized as soon as its block is
// full, in nats and means over the prompt's tokens.
struct TrialResult {
  int plan = 0;  // index in TrialPlans()
  int prompt = 0;
  int64_t num_tokens = 0;
  double loss_difference = 0;  // loss minus that in full precision
  double kl_divergence = 0;    // from full precision's next-token distribution
};

class ImportanceEstimator {
 public:
  virtual ~ImportanceEstimator() = default;
  virtual SignalSet RequiredSignals() const = 0;
  // Which token's loss the gradients are of: 1, the next token; 2, as KVmix's
  // released code (see gradient_norm).
  virtual int LabelShift() const { return 1; }
  // True: scores are of the formats in ProfileContext::formats, and the profile
  // has a loss for each.
  virtual bool NeedsFormats() const { return false; }
  virtual bool NeedsTrials() const { return false; }
  // Called once, before any Observe.
  virtual absl::Status Start(const ProfileContext& context) = 0;
  // The caller has checked that the required signals are present and the layer
  // is in range.
  virtual absl::Status Observe(const LayerTrace& trace) = 0;
  // Called after Start if NeedsTrials(), and ObserveTrial once for every plan
  // and prompt.
  virtual std::vector<CachePlan> TrialPlans() const { return {}; }
  virtual absl::Status ObserveTrial(const TrialResult&) {
    return absl::OkStatus();
  }
  // Scores are finite and non-negative, one per layer. Errors: a layer without
  // observation, a score that is not finite.
  virtual absl::StatusOr<ImportanceProfile> Finish() = 0;

  // False: the profile depends on no prompt.
  bool NeedsModel() const {
    return !RequiredSignals().empty() || NeedsTrials();
  }
};

}  // namespace kvmix
