// Shows an importance estimator what a model computes on prompts, and can tell
// what that costs beside the forward pass that it cannot do without.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kvmix/importance/importance_estimator.h"
#include "models/transformer.h"

namespace kvmix {

using Prompts = std::vector<std::vector<int32_t>>;

struct Observation {
  double mean_loss = 0;  // nats per token, mean over prompts
  // For each prompt, what the estimator needs: forward, and backward if it
  // wants gradients.
  std::vector<double> profile_seconds;
  // For each prompt, before that, Transformer::Forward with the logits of all
  // tokens and a cache in half precision; empty unless asked for.
  std::vector<double> forward_seconds;
};

// All layers of all prompts. Errors: those of TraceLayers; Cancelled when *stop
// becomes true.
absl::StatusOr<Observation> ObservePrompts(
    Transformer& model, const Prompts& prompts, ImportanceEstimator& estimator,
    bool time_forward, const std::atomic<bool>* stop = nullptr);

}  // namespace kvmix
