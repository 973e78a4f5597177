// Speed of prefill and decode, methods interleaved.
//
// A round gives every method in turn a fresh cache, one prefill of all prompt
// tokens in one chunk, and decode_tokens greedy steps, so that what slows the
// machine for a while slows all methods alike. Reported are the median, the
// lowest and the highest of the rounds; compare methods, not machines.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "experiments/evaluate.h"
#include "experiments/experiment.pb.h"
#include "experiments/record.pb.h"

namespace kvmix {

// The prompt is `text`, repeated to the asked length. Errors: prompt and decode
// tokens that the model's context does not hold.
absl::StatusOr<std::vector<MethodSpeed>> MeasureSpeed(
    const WhereToRun& where, absl::Span<const RunnableMethod> methods,
    const Speed& speed, absl::Span<const int32_t> text,
    const std::atomic<bool>* stop = nullptr);

}  // namespace kvmix
