// The synthetic long-context suite: kinds of retrieval, tracing and copying in
// contexts of any length, made by a seeded generator. What each kind asks is
// said where it is registered.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "experiments/synthetic/synthetic_text.h"
#include "experiments/tasks/document_window.h"
#include "experiments/tasks/synthetic_tasks.pb.h"
#include "experiments/tasks/task.h"
#include "experiments/tasks/word_lists.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"

namespace kvmix {
namespace {

// A kind of the suite.
struct Kind {
  SyntheticTask task = SyntheticTask::kRecall;
  SyntheticTextOptions options;
  // Of lists of words instead: how many of the most frequent are asked for.
  int frequent_words = 0;
};

class SyntheticSuite final : public Task {
 public:
  SyntheticSuite(const Kind& kind, const SyntheticTaskOptions& options)
      : kind_(kind), options_(options) {}

  std::string metric() const override { return ""; }

  absl::StatusOr<std::vector<Window>> Samples(
      const TaskContext& context) const override {
    std::vector<double> depths(options_.depth().begin(),
                               options_.depth().end());
    if (depths.empty()) depths.push_back(-1);
    std::vector<Window> windows;
    // Documents in the outer loop, so that a limit cuts all places alike.
    for (int i = 0; i < options_.documents(); ++i) {
      for (int tokens : options_.tokens()) {
        for (double depth : depths) {
          if (context.limit > 0 &&
              static_cast<int>(windows.size()) == context.limit)
            return windows;
          KVMIX_ASSIGN_OR_RETURN(
              Window window,
              Sample(context, tokens, depth, static_cast<uint64_t>(i)));
          windows.push_back(std::move(window));
        }
      }
    }
    return windows;
  }

 private:
  absl::StatusOr<Window> Sample(const TaskContext& context, int tokens,
                                double depth, uint64_t index) const {
    SyntheticTextOptions options = kind_.options;
    options.tokens = tokens;
    options.depth = depth;
    if (options_.facts() > 0) options.facts = options_.facts();
    if (options_.questions() > 0) options.questions = options_.questions();
    if (depth >= 0) options.questions = 1;
    absl::StatusOr<SyntheticDocument> document =
        kind_.frequent_words > 0
            ? WordListDocument(tokens, kind_.frequent_words, context.seed,
                               index)
            : GenerateSyntheticDocument(kind_.task, options, context.seed,
                                        index);
    if (!document.ok()) return document.status();
    KVMIX_ASSIGN_OR_RETURN(Window window,
                           DocumentWindow(*document, *context.tokenizer));
    if (static_cast<int64_t>(window.tokens.size()) > context.max_position) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a document of ", tokens, " tokens takes ", window.tokens.size(),
          " of the model's but its context is ", context.max_position,
          "; lower tokens"));
    }
    if (depth >= 0) {
      window.context_tokens = tokens;
      window.depth = depth;
    }
    return window;
  }

  const Kind kind_;
  const SyntheticTaskOptions options_;
};

absl::Status Resolve(SyntheticTaskOptions& options) {
  if (options.tokens().empty()) options.add_tokens(2048);
  if (options.documents() == 0) options.set_documents(8);
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(options.documents(), 1, 1 << 20, "documents"));
  KVMIX_RETURN_IF_ERROR(ValidateIsNonNegative(options.facts(), "facts"));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsNonNegative(options.questions(), "questions"));
  for (int tokens : options.tokens())
    KVMIX_RETURN_IF_ERROR(ValidateIsInRange(tokens, 48, 32768, "tokens"));
  for (double depth : options.depth())
    KVMIX_RETURN_IF_ERROR(ValidateIsInRange(depth, 0.0, 1.0, "depth"));
  return absl::OkStatus();
}

bool Register(const char* name, const char* summary, const Kind& kind) {
  return Registry<Task>::Get().Add<SyntheticTaskOptions>(
      name, summary,
      [kind](SyntheticTaskOptions options) -> Registry<Task>::Result {
        KVMIX_RETURN_IF_ERROR(Resolve(options));
        if (kind.frequent_words > 0 && !options.depth().empty()) {
          return absl::InvalidArgumentError(
              "depth: what stands most often stands nowhere in particular; "
              "leave it out");
        }
        return std::make_unique<SyntheticSuite>(kind, options);
      });
}

Kind Recall(int facts, int questions, double confusable) {
  Kind kind;
  kind.options.facts = facts;
  kind.options.questions = questions;
  kind.options.confusable = confusable;
  return kind;
}

Kind Copy(int facts, int length, double confusable) {
  Kind kind = Recall(facts, 8, confusable);
  kind.task = SyntheticTask::kCopy;
  kind.options.copy_length = length;
  return kind;
}

Kind Tracking() {
  Kind kind = Recall(24, 8, 1);
  kind.task = SyntheticTask::kHop;
  kind.options.hops = 2;
  return kind;
}

Kind Words(int asked) {
  Kind kind;
  kind.frequent_words = asked;
  return kind;
}

const bool kRegistered[] = {
    Register("needle_single", "one record beside a single other, in a story",
             Recall(2, 1, 0)),
    Register("needle_multi_key", "one of 32 records, keys drawn at random",
             Recall(32, 1, 0)),
    Register("needle_confusable",
             "records among 32 whose keys differ in one digit",
             Recall(32, 8, 1)),
    Register("needle_multi_query",
             "24 questions one after the other about 32 records",
             Recall(32, 24, 0)),
    Register("needle_multi_value", "all four values that follow one key",
             Copy(8, 7, 0)),
    Register("line_retrieval", "one line of 128, by its number",
             Recall(128, 8, 0)),
    Register("variable_tracking", "the chain of assignments behind a variable",
             Tracking()),
    Register("copy", "strings of 12 symbols whose starts are alike",
             Copy(16, 12, 1)),
    Register("common_words", "the word that stands most often in a list",
             Words(1)),
    Register("frequent_words",
             "the three most frequent words of a list, in order", Words(3)),
};

}  // namespace
}  // namespace kvmix
