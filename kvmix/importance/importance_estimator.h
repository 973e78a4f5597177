// ImportanceEstimator: ranks layers by how much the precision of their keys and
// values matters.
//
// An estimator never calls the model. It declares the signals it needs, is
// shown one LayerTrace per layer and prompt in any order of layers, and answers
// with a profile.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvmix/importance_profile.pb.h"
#include "kvmix/layer_trace.h"

namespace kvmix {

struct ProfileContext {
  int num_layers = 0;
  uint64_t seed = 0;
};

class ImportanceEstimator {
 public:
  virtual ~ImportanceEstimator() = default;
  virtual SignalSet RequiredSignals() const = 0;
  // Which token's loss the gradients are of: 1, the next token; 2, as KVmix's
  // released code (see gradient_norm).
  virtual int LabelShift() const { return 1; }
  // Called once, before any Observe.
  virtual absl::Status Start(const ProfileContext& context) = 0;
  // The caller has checked that the required signals are present and the layer
  // is in range.
  virtual absl::Status Observe(const LayerTrace& trace) = 0;
  // Scores are finite and non-negative, one per layer. Errors: a layer without
  // observation, a score that is not finite.
  virtual absl::StatusOr<ImportanceProfile> Finish() = 0;
};

}  // namespace kvmix
