// Evaluates all methods on one window, side by side.
//
// Every method has its own cache; all of them take each chunk in one batched
// pass, full precision first, so that divergences are taken chunk by chunk and
// only the chunk's logits of full precision are kept.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "experiments/experiment.pb.h"
#include "experiments/method_caches.h"
#include "experiments/record.pb.h"
#include "experiments/runnable_method.h"
#include "experiments/sweep/full_precision_store.h"
#include "experiments/windows.h"
#include "kvmix/base/thread_pool.h"
#include "models/transformer.h"

namespace kvmix {

// Full precision for every layer: what all else is compared with.
absl::StatusOr<RunnableMethod> FullPrecision(
    const CacheShape& shape, CachePlan::FullPrecision type = CachePlan::HALF);

// What a cache holds at the end of a window of num_tokens tokens.
Ledger LedgerRecord(const MemoryLedger& bill, const CacheShape& shape,
                    int64_t num_tokens);

// Tokens of the chunks that a window is fed in; they add up to `num_tokens`.
// `prompt_tokens`: what EXACT_PREFILL takes at once if the config leaves it
// open.
std::vector<int64_t> ChunkLengths(const Evaluation& evaluation,
                                  int64_t num_tokens, int64_t prompt_tokens);

// "CHUNKED(128)"
std::string ModeText(const Evaluation& evaluation);

// methods[0] is full precision; with a `store` it is not run if what it said is
// there, and kept there otherwise. Errors: those of Transformer::Forward,
// logits that are not finite; Cancelled when *stop becomes true, between two
// chunks.
absl::StatusOr<WindowRecord> EvaluateWindow(
    const WhereToRun& where, absl::Span<const RunnableMethod> methods,
    const Window& window, const Evaluation& evaluation, ThreadPool& threads,
    const std::atomic<bool>* stop = nullptr,
    const FullPrecisionStore* store = nullptr);

}  // namespace kvmix
