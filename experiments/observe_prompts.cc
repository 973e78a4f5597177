#include "experiments/observe_prompts.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "experiments/evaluate.h"
#include "kvmix/base/progress_bar.h"
#include "kvmix/base/status_macros.h"
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
absl::StatusOr<double> ObservePrompt(Transformer& model,
                                     const std::vector<int32_t>& tokens,
                                     int index,
                                     ImportanceEstimator& estimator) {
  const TraceOptions options = {.signals = estimator.RequiredSignals(),
                                .label_shift = estimator.LabelShift(),
                                .prompt = index};
  return TraceLayers(model, tokens, options, [&](const LayerTrace& trace) {
    return estimator.Observe(trace);
  });
}

}  // namespace

absl::StatusOr<Observation> ObservePrompts(Transformer& model,
                                           const Prompts& prompts,
                                           ImportanceEstimator& estimator,
                                           bool time_forward,
                                           const std::atomic<bool>* stop) {
  ProgressBar bar("profile", static_cast<int64_t>(prompts.size()), "prompts");
  Observation seen;
  for (size_t i = 0; i < prompts.size(); ++i) {
    if (stop != nullptr && *stop) return absl::CancelledError("interrupted");
    if (time_forward) {
      KVMIX_ASSIGN_OR_RETURN(const double seconds,
                             TimeForward(model, prompts[i]));
      seen.forward_seconds.push_back(seconds);
    }
    const absl::Time start = absl::Now();
    absl::StatusOr<double> loss =
        ObservePrompt(model, prompts[i], static_cast<int>(i), estimator);
    if (!loss.ok())
      return AddContext(loss.status(), absl::StrCat("prompt ", i));
    seen.profile_seconds.push_back(SecondsSince(start));
    seen.mean_loss += *loss / static_cast<double>(prompts.size());
    bar.Advance();
  }
  return seen;
}

}  // namespace kvmix
