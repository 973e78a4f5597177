#include "models/generate.h"

#include <algorithm>
#include <chrono>

#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"

namespace kvmix {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Runs one chunk and chooses the token after it, if it is the prompt's last.
absl::Status Pass(Transformer& model, absl::Span<const int32_t> tokens,
                  KvCache& cache, Sampler* sampler, int32_t* next) {
  const Chunk chunk = {
      .tokens = tokens,
      .cache = &cache,
      .logits = sampler ? WantLogits::kLast : WantLogits::kNone};
  return model.Forward(
      {chunk}, [&](int, int64_t, int64_t, const float* logits) -> absl::Status {
        KVMIX_ASSIGN_OR_RETURN(
            *next, sampler->Next({logits, static_cast<size_t>(
                                              model.config().vocab_size)}));
        return absl::OkStatus();
      });
}

}  // namespace

absl::StatusOr<Generation> Generate(
    Transformer& model, absl::Span<const int32_t> prompt, KvCache& cache,
    const GenerateOptions& options,
    const std::function<void(int32_t token)>& on_token) {
  KVMIX_RETURN_IF_ERROR(
      ValidateIsPositive(options.max_new_tokens, "max_new_tokens"));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsPositive(options.prefill_chunk, "prefill_chunk"));
  if (prompt.empty()) {
    return absl::InvalidArgumentError(
        "the prompt has no tokens; give it at least one");
  }
  KVMIX_ASSIGN_OR_RETURN(Sampler sampler, Sampler::Create(options.sampling));

  Generation out;
  int32_t next = 0;
  const Clock::time_point start = Clock::now();
  const size_t chunk = static_cast<size_t>(options.prefill_chunk);
  for (size_t first = 0; first < prompt.size(); first += chunk) {
    const bool last = first + chunk >= prompt.size();
    KVMIX_RETURN_IF_ERROR(Pass(model, prompt.subspan(first, chunk), cache,
                               last ? &sampler : nullptr, &next));
  }
  out.prefill_seconds = SecondsSince(start);

  const Clock::time_point decode_start = Clock::now();
  const std::vector<int>& eos = model.config().eos_ids;
  for (;;) {
    out.ended = std::find(eos.begin(), eos.end(), next) != eos.end();
    if (out.ended) break;
    out.tokens.push_back(next);
    if (on_token) on_token(next);
    if (static_cast<int>(out.tokens.size()) == options.max_new_tokens ||
        cache.num_tokens(0) == model.config().max_position)
      break;
    const int32_t token = next;
    KVMIX_RETURN_IF_ERROR(Pass(model, {&token, 1}, cache, &sampler, &next));
    ++out.decode_passes;
  }
  out.decode_seconds = SecondsSince(decode_start);
  return out;
}

}  // namespace kvmix
