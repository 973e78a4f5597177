#include "experiments/continue_window.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "experiments/evaluate.h"
#include "experiments/metrics.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

// One method's way through the prompt and on.
class Continuer {
 public:
  Continuer(const WhereToRun& where, const Window& window,
            const Evaluation& evaluation, const std::vector<int32_t>& eos,
            const std::atomic<bool>* stop)
      : where_(where),
        window_(window),
        lengths_(ChunkLengths(evaluation,
                              static_cast<int64_t>(window.tokens.size()),
                              window.prompt_tokens)),
        eos_(eos),
        stop_(stop) {}

  absl::StatusOr<WindowMethod> Run(const RunnableMethod& method) {
    const int64_t prompt = static_cast<int64_t>(window_.tokens.size());
    KVMIX_ASSIGN_OR_RETURN(
        const std::unique_ptr<MethodCaches> caches,
        MakeMethodCaches(where_, {&method, 1},
                         {.max_tokens = prompt + window_.continue_tokens,
                          .max_chunk_tokens = *std::max_element(
                              lengths_.begin(), lengths_.end())}));
    int64_t first = 0;
    int32_t next = 0;
    for (int64_t length : lengths_) {
      const auto chunk =
          absl::MakeConstSpan(window_.tokens).subspan(first, length);
      KVMIX_RETURN_IF_ERROR(Step(chunk, *caches, next));
      first += length;
    }
    std::vector<int32_t> continuation;
    while (std::find(eos_.begin(), eos_.end(), next) == eos_.end()) {
      continuation.push_back(next);
      if (static_cast<int>(continuation.size()) == window_.continue_tokens ||
          window_.is_finished(continuation))
        break;
      KVMIX_RETURN_IF_ERROR(
          Step(absl::MakeConstSpan(&continuation.back(), 1), *caches, next));
      ++first;
    }
    KVMIX_ASSIGN_OR_RETURN(JudgedText judged, window_.judge(continuation));
    WindowMethod result;
    result.set_text(std::move(judged.text));
    result.set_score(judged.score);
    result.set_continued_tokens(static_cast<int>(continuation.size()));
    *result.mutable_ledger() =
        LedgerRecord(caches->ledger(0), where_.cpu->cache_shape(), first);
    return result;
  }

 private:
  // Appends tokens; `next` becomes the most likely one after them.
  absl::Status Step(absl::Span<const int32_t> tokens, MethodCaches& caches,
                    int32_t& next) {
    if (stop_ != nullptr && *stop_) return absl::CancelledError("interrupted");
    const int64_t vocab_size = where_.cpu->config().vocab_size;
    return caches.Forward(
        tokens, WantLogits::kLast,
        [&](int, int64_t, int64_t num_rows, const float* logits) {
          const LogitsRow row =
              ReduceLogits(logits + (num_rows - 1) * vocab_size, vocab_size);
          next = row.argmax;
          return std::isfinite(row.log_sum_exp)
                     ? absl::OkStatus()
                     : absl::InternalError("logits are not finite");
        });
  }

  const WhereToRun& where_;
  const Window& window_;
  const std::vector<int64_t> lengths_;
  const std::vector<int32_t>& eos_;
  const std::atomic<bool>* stop_;
};

}  // namespace

absl::StatusOr<WindowRecord> ContinueWindow(
    const WhereToRun& where, absl::Span<const RunnableMethod> methods,
    const Window& window, const Evaluation& evaluation,
    const std::vector<int32_t>& eos, const std::atomic<bool>* stop,
    const FullPrecisionStore* store) {
  std::optional<FullPrecisionStore::Entry> stored;
  if (store != nullptr) {
    KVMIX_ASSIGN_OR_RETURN(
        stored, store->Open(absl::StrCat(FingerprintOf({window.tokens}),
                                         " continue ", window.continue_tokens,
                                         "\n", window.reference),
                            0));
  }
  WindowRecord record;
  record.set_prompt(window.prompt);
  Continuer continuer(where, window, evaluation, eos, stop);
  for (size_t m = 0; m < methods.size(); ++m) {
    if (m == 0 && stored && stored->found()) {
      if (!record.add_method()->ParseFromString(stored->summary()))
        return absl::DataLossError("a window of full precision is damaged");
      continue;
    }
    absl::StatusOr<WindowMethod> result = continuer.Run(methods[m]);
    if (!result.ok()) {
      return AddContext(result.status(),
                        absl::StrCat("method ", methods[m].name));
    }
    *record.add_method() = *std::move(result);
    if (m == 0 && stored) {
      KVMIX_RETURN_IF_ERROR(stored->Keep(record.method(0).SerializeAsString()));
    }
  }
  return record;
}

}  // namespace kvmix
