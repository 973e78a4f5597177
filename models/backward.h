// Gradients of the language-model loss for the importance estimators: one
// forward and one backward pass give those of all layers' W_k, W_v and cached K
// and V states. Only each layer's input is kept; its activations are
// recomputed.
#pragma once

#include <cstdint>
#include <functional>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvmix/layer_trace.h"
#include "models/transformer.h"

namespace kvmix {

struct TraceOptions {
  SignalSet signals = {};
  // The loss is the mean cross-entropy of token t + label_shift given tokens up
  // to t.
  int label_shift = 1;
  int prompt = 0;  // copied into the traces
};

// Shows `observe` one LayerTrace for each layer (last layer first if gradients
// are needed) and returns the loss in nats. Errors: fewer than label_shift + 1
// tokens, a token outside the vocabulary, too long a prompt, a loss or gradient
// that is not finite.
absl::StatusOr<double> TraceLayers(
    Transformer& model, absl::Span<const int32_t> tokens,
    const TraceOptions& options,
    const std::function<absl::Status(const LayerTrace&)>& observe);

// ---- What TraceLayers on every device shares ----

// A prompt and signals that cannot be traced, on a model that computes in
// `compute`.
absl::Status ValidateTrace(const ModelConfig& config, ComputeType compute,
                           absl::Span<const int32_t> tokens,
                           const TraceOptions& options);

// A trace's sizes and the rotation of its keys, without signals.
LayerTrace EmptyTrace(const ModelConfig& config, const KeyRotation& rotation,
                      int64_t num_tokens, int prompt, int layer);

// An error that names the first number of a trace that is not finite.
absl::Status CheckIsFinite(const LayerTrace& trace);
absl::Status CheckLoss(double loss);

// Logits of all tokens with keys and values in float and no cache between: what
// another framework computes, where Forward differs by the rounding of cached
// keys and values to half. Rows are shown as Forward shows chunk 0's. Errors:
// no tokens, one outside the vocabulary, more than the model's context; the
// consumer's.
absl::Status ExactLogits(Transformer& model, absl::Span<const int32_t> tokens,
                         const LogitsConsumer& consume);

}  // namespace kvmix
