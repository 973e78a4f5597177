#include "experiments/observe_prompts.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "experiments/evaluate.h"
#include "kvmix/base/progress_bar.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/importance/query_energy.h"
#include "models/backward.h"

namespace kvmix {
namespace {

double SecondsSince(absl::Time start) {
  return absl::ToDoubleSeconds(absl::Now() - start);
}

absl::StatusOr<double> TimeForward(Transformer& model,
                                   const std::vector<int32_t>& tokens) {
  KVMIX_ASSIGN_OR_RETURN(const RunnableMethod full,
                         FullPrecision(model.cache_shape()));
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<KvCache> cache,
                         MakeCache(model, full));
  const Chunk chunk = {tokens, cache.get(), WantLogits::kAll};
  const absl::Time start = absl::Now();
  KVMIX_RETURN_IF_ERROR(model.Forward(
      {&chunk, 1},
      [](int, int64_t, int64_t, const float*) { return absl::OkStatus(); }));
  return SecondsSince(start);
}

// The loss.
absl::StatusOr<double> ObserveTraces(const WhereToRun& where,
                                     const std::vector<int32_t>& tokens,
                                     int index,
                                     ImportanceEstimator& estimator) {
  const TraceOptions options = {.signals = estimator.RequiredSignals(),
                                .label_shift = estimator.LabelShift(),
                                .prompt = index};
  const auto observe = [&](const LayerTrace& trace) {
    return estimator.Observe(trace);
  };
  if (where.device != nullptr)
    return where.device->TraceLayers(tokens, options, observe);
  return TraceLayers(*where.cpu, tokens, options, observe);
}

// Passes of the model that ObservePrompt makes and the progress bar counts.
int64_t PassesOfAPrompt(const ImportanceEstimator& estimator) {
  const size_t trials =
      estimator.NeedsTrials() ? estimator.TrialPlans().size() : 0;
  return NumTrialPasses(trials) + (estimator.RequiredSignals().empty() ? 0 : 1);
}

// Full precision's loss.
absl::StatusOr<double> ObserveTrials(const WhereToRun& where,
                                     const std::vector<int32_t>& tokens,
                                     int index, ImportanceEstimator& estimator,
                                     const ObserveOptions& options,
                                     ProgressBar& bar) {
  std::vector<CachePlan> plans = estimator.TrialPlans();
  if (options.calibration != nullptr) {
    for (CachePlan& plan : plans)
      KVMIX_RETURN_IF_ERROR(CalibratePlan(*options.calibration, plan));
  }
  KVMIX_ASSIGN_OR_RETURN(
      const RunnableMethod without_policies,
      FullPrecision(where.cpu->cache_shape(), options.full_precision));
  KVMIX_ASSIGN_OR_RETURN(
      const TrialResults trials,
      RunTrialPlans(where, tokens, plans, without_policies,
                    {.chunk_tokens = options.trial_chunk_tokens,
                     .pass_done = [&] { bar.Advance(); },
                     .stop = options.stop}));
  for (size_t i = 0; i < trials.losses.size(); ++i) {
    KVMIX_RETURN_IF_ERROR(estimator.ObserveTrial(
        {.plan = static_cast<int>(i),
         .prompt = index,
         .num_tokens = static_cast<int64_t>(tokens.size()),
         .loss_difference = trials.losses[i].loss_difference,
         .kl_divergence = trials.losses[i].kl_divergence}));
  }
  return trials.full_loss;
}

absl::StatusOr<double> ObservePrompt(const WhereToRun& where,
                                     const std::vector<int32_t>& tokens,
                                     int index, ImportanceEstimator& estimator,
                                     const ObserveOptions& options,
                                     ProgressBar& bar) {
  double loss = 0;
  if (estimator.NeedsTrials()) {
    KVMIX_ASSIGN_OR_RETURN(
        loss, ObserveTrials(where, tokens, index, estimator, options, bar));
  }
  if (!estimator.RequiredSignals().empty()) {
    KVMIX_ASSIGN_OR_RETURN(loss,
                           ObserveTraces(where, tokens, index, estimator));
    bar.Advance();
  }
  return loss;
}

}  // namespace

absl::StatusOr<Observation> ObservePrompts(const WhereToRun& where,
                                           const Prompts& prompts,
                                           ImportanceEstimator& estimator,
                                           const ObserveOptions& options) {
  ProgressBar bar(
      options.title,
      static_cast<int64_t>(prompts.size()) * PassesOfAPrompt(estimator),
      "passes");
  Observation seen;
  for (size_t i = 0; i < prompts.size(); ++i) {
    if (options.stop != nullptr && *options.stop)
      return absl::CancelledError("interrupted");
    if (options.time_forward) {
      KVMIX_ASSIGN_OR_RETURN(const double seconds,
                             TimeForward(*where.cpu, prompts[i]));
      seen.forward_seconds.push_back(seconds);
    }
    const absl::Time start = absl::Now();
    const int index = options.first_prompt + static_cast<int>(i);
    absl::StatusOr<double> loss =
        ObservePrompt(where, prompts[i], index, estimator, options, bar);
    if (!loss.ok())
      return AddContext(loss.status(), absl::StrCat("prompt ", index));
    seen.profile_seconds.push_back(SecondsSince(start));
    seen.mean_loss += *loss / static_cast<double>(prompts.size());
  }
  return seen;
}

}  // namespace kvmix
