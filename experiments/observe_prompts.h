// Shows an importance estimator what a model computes on prompts, and can tell
// what that costs beside the forward pass that it cannot do without.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "experiments/method_caches.h"
#include "experiments/trial_plans.h"
#include "kvmix/importance/importance_estimator.h"
#include "models/transformer.h"

namespace kvmix {

struct Observation {
  double mean_loss = 0;  // nats per token, mean over prompts
  // For each prompt, what the estimator needs: forward, and backward if it
  // wants gradients.
  std::vector<double> profile_seconds;
  // For each prompt, before that, Transformer::Forward with the logits of all
  // tokens and a cache in half precision; empty unless asked for.
  std::vector<double> forward_seconds;
};

struct ObserveOptions {
  std::string title = "profile";  // of the progress bar
  bool time_forward = false;
  // Trial plans see prompts in chunks of so many tokens, each over the
  // compressed cache of all earlier ones, with no window beyond blocks that are
  // not full.
  int trial_chunk_tokens = 32;
  CachePlan::FullPrecision full_precision = CachePlan::HALF;  // of their caches
  int first_prompt = 0;  // number of the first prompt
  // Trial plans are calibrated by it (kvmix/importance/query_energy.h).
  const ImportanceProfile* calibration = nullptr;
  const std::atomic<bool>* stop = nullptr;
};

// All layers of all prompts, and all trial plans, on the device if there is one
// (check_against_cpu means chunks, not traces). Errors: those of TraceLayers
// and EvaluateWindow; Cancelled when *stop becomes true.
absl::StatusOr<Observation> ObservePrompts(const WhereToRun& where,
                                           const Prompts& prompts,
                                           ImportanceEstimator& estimator,
                                           const ObserveOptions& options);

}  // namespace kvmix
