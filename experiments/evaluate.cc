#include "experiments/evaluate.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "experiments/metrics.h"
#include "kvmix/base/check.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

// Scores of one row; rows are scored in parallel and stored in order.
struct TokenScore {
  double nll = 0;
  double kl = 0;
  bool top1 = false;
  bool hit = false;
};

// Scores the logits of one chunk of all methods.
class ChunkScorer {
 public:
  ChunkScorer(const Window& window, int64_t first, int64_t num_tokens,
              int64_t vocab_size, ThreadPool& threads, WindowRecord& record)
      : window_(window),
        first_(first),
        // The window's last token has no successor to score.
        num_scored_(std::min<int64_t>(
            num_tokens,
            static_cast<int64_t>(window.tokens.size()) - 1 - first)),
        vocab_size_(vocab_size),
        threads_(threads),
        record_(record),
        full_logits_(std::max<int64_t>(num_scored_, 0) * vocab_size),
        full_(std::max<int64_t>(num_scored_, 0)) {}

  absl::Status Consume(int method, int64_t first_token, int64_t num_rows,
                       const float* logits) {
    const int64_t rows = std::min(num_rows, num_scored_ - first_token);
    if (rows <= 0) return absl::OkStatus();
    if (method == 0) {
      std::copy_n(logits, rows * vocab_size_,
                  full_logits_.data() + first_token * vocab_size_);
      full_rows_ += rows;
    } else {
      KVMIX_CHECK(full_rows_ == num_scored_)
          << "logits of full precision must come first";
    }
    std::vector<TokenScore> scores(rows);
    threads_.ParallelFor(rows, [&](int64_t row, int) {
      scores[row] =
          Score(method, first_token + row, logits + row * vocab_size_);
    });
    return Store(method, first_token, scores);
  }

 private:
  TokenScore Score(int method, int64_t token, const float* logits) {
    if (method == 0) {
      full_[token] =
          ReduceLogits(full_logits_.data() + token * vocab_size_, vocab_size_);
    }
    const LogitsRow& full = full_[token];
    const LogitsRow own =
        method == 0 ? full : ReduceLogits(logits, vocab_size_);
    const int32_t next = window_.tokens[first_ + token + 1];
    return {.nll = Nll(own, next),
            .kl = method == 0 ? 0 : KlDivergence(full, own, vocab_size_),
            .top1 = own.argmax == full.argmax,
            .hit = own.argmax == next};
  }

  absl::Status Store(int method, int64_t first_token,
                     const std::vector<TokenScore>& scores) {
    WindowMethod& out = *record_.mutable_method(method);
    for (size_t i = 0; i < scores.size(); ++i) {
      if (!std::isfinite(scores[i].nll) || !std::isfinite(scores[i].kl)) {
        return absl::InternalError(
            absl::StrCat("logits after token ", first_ + first_token + i,
                         " of the window are not finite"));
      }
      out.add_nll(scores[i].nll);
      out.add_kl(scores[i].kl);
      out.add_top1(scores[i].top1);
      out.add_hit(scores[i].hit);
    }
    return absl::OkStatus();
  }

  const Window& window_;
  const int64_t first_;
  const int64_t num_scored_;
  const int64_t vocab_size_;
  ThreadPool& threads_;
  WindowRecord& record_;
  std::vector<float> full_logits_;  // [num_scored, V]
  std::vector<LogitsRow> full_;
  int64_t full_rows_ = 0;
};

LedgerSideRecord SideRecord(const LedgerSide& side, int head_dim) {
  LedgerSideRecord record;
  record.set_codes(side.codes);
  record.set_scales(side.scales);
  record.set_zeros(side.zeros);
  record.set_side_data(side.side_data);
  record.set_sinks(side.sinks);
  record.set_window(side.window);
  record.set_slack(side.slack);
  record.set_packed_elements(side.packed_tokens * head_dim);
  record.set_full_precision_elements(side.full_precision_tokens * head_dim);
  record.set_unquantized_elements(side.unquantized_tokens * head_dim);
  return record;
}

// The window in the store; its key is all of the window that logits depend on.
absl::StatusOr<std::optional<FullPrecisionStore::Entry>> OpenStored(
    const FullPrecisionStore* store, const Window& window, int64_t vocab_size) {
  std::optional<FullPrecisionStore::Entry> entry;
  if (store == nullptr) return entry;
  const int64_t scored = static_cast<int64_t>(window.tokens.size()) - 1;
  KVMIX_ASSIGN_OR_RETURN(
      entry, store->Open(absl::StrCat(FingerprintOf({window.tokens}), " ",
                                      window.prompt_tokens),
                         scored * vocab_size));
  return entry;
}

}  // namespace

absl::StatusOr<RunnableMethod> FullPrecision(const CacheShape& shape,
                                             CachePlan::FullPrecision type) {
  Component recency, eviction;
  recency.set_name("none");
  eviction.set_name("keep_all");
  RunnableMethod method;
  method.name = "full precision";
  KVMIX_ASSIGN_OR_RETURN(method.recency, Registry<RecencyPolicy>::Get().Make(
                                             recency, "recency_policy"));
  KVMIX_ASSIGN_OR_RETURN(method.eviction, Registry<EvictionPolicy>::Get().Make(
                                              eviction, "eviction_policy"));
  method.plan.set_full_precision(type);
  for (int i = 0; i < shape.num_layers; ++i) {
    LayerPlan& layer = *method.plan.add_layer();
    layer.mutable_key()->set_bits(16);
    layer.mutable_value()->set_bits(16);
  }
  return method;
}

Ledger LedgerRecord(const MemoryLedger& bill, const CacheShape& shape,
                    int64_t num_tokens) {
  Ledger record;
  *record.mutable_key() = SideRecord(bill.key, shape.head_dim);
  *record.mutable_value() = SideRecord(bill.value, shape.head_dim);
  record.set_bookkeeping(bill.bookkeeping);
  record.set_fp16_bytes(2 * 2 * num_tokens * shape.num_layers *
                        shape.num_kv_heads * shape.head_dim);
  return record;
}

std::vector<int64_t> ChunkLengths(const Evaluation& evaluation,
                                  int64_t num_tokens, int64_t prompt_tokens) {
  int64_t step = 1;
  std::vector<int64_t> lengths;
  if (evaluation.mode() == Evaluation::CHUNKED) {
    step = evaluation.chunk_tokens();
  } else if (evaluation.mode() == Evaluation::EXACT_PREFILL) {
    if (evaluation.prefill_tokens() > 0)
      prompt_tokens = evaluation.prefill_tokens();
    lengths.push_back(std::clamp<int64_t>(prompt_tokens, 1, num_tokens));
    num_tokens -= lengths[0];
  }
  for (; num_tokens > 0; num_tokens -= lengths.back())
    lengths.push_back(std::min(step, num_tokens));
  return lengths;
}

std::string ModeText(const Evaluation& evaluation) {
  if (evaluation.mode() == Evaluation::CHUNKED)
    return absl::StrCat("CHUNKED(", evaluation.chunk_tokens(), ")");
  if (evaluation.mode() == Evaluation::EXACT_PREFILL &&
      evaluation.prefill_tokens() > 0)
    return absl::StrCat("EXACT_PREFILL(", evaluation.prefill_tokens(), ")");
  return Evaluation::Mode_Name(evaluation.mode());
}

absl::StatusOr<WindowRecord> EvaluateWindow(
    const WhereToRun& where, absl::Span<const RunnableMethod> methods,
    const Window& window, const Evaluation& evaluation, ThreadPool& threads,
    const std::atomic<bool>* stop, const FullPrecisionStore* store) {
  const int64_t vocab_size = where.cpu->config().vocab_size;
  KVMIX_ASSIGN_OR_RETURN(std::optional<FullPrecisionStore::Entry> stored,
                         OpenStored(store, window, vocab_size));
  // Methods [first_run, ..) are run.
  const int first_run = stored && stored->found() ? 1 : 0;
  const absl::Span<const RunnableMethod> run = methods.subspan(first_run);
  WindowRecord record;
  record.set_words(window.words);
  for (const Window::Span& span : window.answers) {
    AnswerSpan* answer = record.add_answer();
    // Token i is scored by the logits of token i - 1.
    answer->set_begin(static_cast<int>(span.begin) - 1);
    answer->set_count(static_cast<int>(span.count));
  }
  for (size_t m = 0; m < methods.size(); ++m) record.add_method();
  const int64_t num_tokens = static_cast<int64_t>(window.tokens.size());
  const std::vector<int64_t> lengths =
      ChunkLengths(evaluation, num_tokens, window.prompt_tokens);
  KVMIX_ASSIGN_OR_RETURN(
      const std::unique_ptr<MethodCaches> caches,
      MakeMethodCaches(where, run,
                       {.max_tokens = num_tokens,
                        .max_chunk_tokens = *std::max_element(lengths.begin(),
                                                              lengths.end())}));
  int64_t first = 0;
  for (int64_t length : lengths) {
    if (stop != nullptr && *stop) return absl::CancelledError("interrupted");
    ChunkScorer scorer(window, first, length, vocab_size, threads, record);
    if (first_run == 1) {
      KVMIX_RETURN_IF_ERROR(
          scorer.Consume(0, 0, length, stored->logits() + first * vocab_size));
    }
    if (!run.empty()) {
      KVMIX_RETURN_IF_ERROR(caches->Forward(
          absl::MakeConstSpan(window.tokens).subspan(first, length),
          WantLogits::kAll,
          [&](int index, int64_t first_token, int64_t num_rows,
              const float* logits) {
            const int method = index + first_run;
            if (method == 0 && stored) {
              const int64_t rows =
                  std::min(num_rows, num_tokens - 1 - first - first_token);
              stored->Append({logits, static_cast<size_t>(rows * vocab_size)});
            }
            return AddContext(
                scorer.Consume(method, first_token, num_rows, logits),
                absl::StrCat("method ", methods[method].name));
          }));
    }
    first += length;
  }
  for (int m = 0; m < static_cast<int>(run.size()); ++m) {
    *record.mutable_method(m + first_run)->mutable_ledger() =
        LedgerRecord(caches->ledger(m), where.cpu->cache_shape(), num_tokens);
  }
  if (first_run == 1) {
    if (!record.mutable_method(0)->mutable_ledger()->ParseFromString(
            stored->summary()))
      return absl::DataLossError("a window of full precision is damaged");
  } else if (stored) {
    KVMIX_RETURN_IF_ERROR(
        stored->Keep(record.method(0).ledger().SerializeAsString()));
  }
  return record;
}

}  // namespace kvmix
