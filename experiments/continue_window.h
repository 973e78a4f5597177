// Evaluates all methods on a prompt that the model continues freely.
//
// Every method goes its own way: the prompt in the chunks of the evaluation
// mode, then one token at a time, always the most likely one.
#pragma once

#include <atomic>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "experiments/experiment.pb.h"
#include "experiments/method_caches.h"
#include "experiments/record.pb.h"
#include "experiments/sweep/full_precision_store.h"
#include "experiments/windows.h"

namespace kvmix {

// Preconditions and errors as EvaluateWindow; window.continue_tokens > 0.
// `eos`: tokens that end a text.
absl::StatusOr<WindowRecord> ContinueWindow(
    const WhereToRun& where, absl::Span<const RunnableMethod> methods,
    const Window& window, const Evaluation& evaluation,
    const std::vector<int32_t>& eos, const std::atomic<bool>* stop = nullptr,
    const FullPrecisionStore* store = nullptr);

}  // namespace kvmix
