// Prefill of a prompt and decoding of what follows, one token at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention/kv_cache.h"
#include "models/sampler.h"
#include "models/transformer.h"

namespace kvmix {

struct GenerateOptions {
  int max_new_tokens = 128;
  // Tokens of the prompt per pass. Default: 512.
  int prefill_chunk = 512;
  SamplingOptions sampling = {};
};

struct Generation {
  std::vector<int32_t> tokens;  // without the prompt and the end token
  bool ended = false;           // the model said so with an end token
  double prefill_seconds = 0;   // to the first token's logits
  double decode_seconds = 0;    // of the passes after that
  int64_t decode_passes = 0;
};

// Appends the prompt, then token after token, to `cache`. `on_token` (may be
// null) sees each new token as it comes. Stops at max_new_tokens, an end token,
// or the end of the model's context. Errors: those of Sampler::Create and
// Transformer::Forward, an empty prompt, a max_new_tokens or prefill_chunk that
// is not positive.
absl::StatusOr<Generation> Generate(
    Transformer& model, absl::Span<const int32_t> prompt, KvCache& cache,
    const GenerateOptions& options,
    const std::function<void(int32_t token)>& on_token);

}  // namespace kvmix
