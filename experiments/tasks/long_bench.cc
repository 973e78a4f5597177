// Questions about long contexts, answered freely (LongBench's format): the best
// score against any of the references counts.
#include <algorithm>

#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "experiments/tasks/jsonl.h"
#include "experiments/tasks/long_bench.pb.h"
#include "experiments/tasks/task.h"
#include "experiments/tasks/text_scores.h"
#include "experiments/tasks/text_windows.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"

namespace kvmix {
namespace {

constexpr char kPrompt[] = "{context}\n\nQuestion: {input}\nAnswer:";

class LongBench final : public Task {
 public:
  explicit LongBench(const LongBenchOptions& options) : options_(options) {}

  std::string metric() const override {
    switch (options_.metric()) {
      case LongBenchOptions::ROUGE_L:
        return "ROUGE-L";
      case LongBenchOptions::CLASSIFICATION:
        return "classification";
      case LongBenchOptions::RETRIEVAL:
        return "retrieval";
      case LongBenchOptions::EDIT_SIMILARITY:
        return "edit similarity";
      default:
        return "F1";
    }
  }

  absl::StatusOr<std::vector<Window>> Samples(
      const TaskContext& context) const override {
    return WindowsOfLines(
        options_.path(), context.limit, options_.skip_bad_lines(),
        [&](const nlohmann::json& line) { return Sample(context, line); });
  }

  std::vector<std::string> Files() const override { return {options_.path()}; }

 private:
  absl::StatusOr<Window> Sample(const TaskContext& context,
                                const nlohmann::json& line) const {
    KVMIX_ASSIGN_OR_RETURN(const std::string text, JsonText(line, "context"));
    KVMIX_ASSIGN_OR_RETURN(const std::string input, JsonText(line, "input"));
    KVMIX_ASSIGN_OR_RETURN(const std::vector<std::string> answers,
                           JsonTexts(line, "answers"));
    if (answers.empty())
      return absl::InvalidArgumentError("\"answers\" is empty");
    std::vector<std::string> classes;
    if (options_.metric() == LongBenchOptions::CLASSIFICATION) {
      KVMIX_ASSIGN_OR_RETURN(classes, JsonTexts(line, "all_classes"));
    }
    const std::string prompt = absl::StrReplaceAll(
        options_.prompt(), {{"{context}", text}, {"{input}", input}});
    std::vector<std::string> stops;
    if (options_.stop_at_newline()) stops.push_back("\n");
    const LongBenchOptions::Metric metric = options_.metric();
    return PromptWindow(
        context, prompt,
        {.max_tokens = options_.max_tokens(),
         .stops = stops,
         .score =
             [metric, answers, classes](const std::string& own) {
               double best = 0;
               for (const std::string& answer : answers)
                 best = std::max(best, Score(metric, own, answer, classes));
               return best;
             },
         .reference = absl::StrJoin(answers, " | ")},
        options_.context_length());
  }

  static double Score(LongBenchOptions::Metric metric, const std::string& text,
                      const std::string& answer,
                      const std::vector<std::string>& classes) {
    switch (metric) {
      case LongBenchOptions::ROUGE_L:
        return RougeL(text, answer);
      case LongBenchOptions::CLASSIFICATION:
        return Classification(text, answer, classes);
      case LongBenchOptions::RETRIEVAL:
        return Retrieval(text, answer);
      case LongBenchOptions::EDIT_SIMILARITY:
        return EditSimilarity(text, answer);
      default:
        return WordF1(text, answer);
    }
  }

  const LongBenchOptions options_;
};

const bool kRegistered = Registry<Task>::Get().Add<LongBenchOptions>(
    "long_bench", "free answers about long contexts, LongBench's format",
    [](LongBenchOptions options) -> Registry<Task>::Result {
      if (options.path().empty())
        return absl::InvalidArgumentError("path is empty; name a JSONL file");
      if (!LongBenchOptions::Metric_IsValid(options.metric()))
        return absl::InvalidArgumentError("metric has no meaning");
      if (options.prompt().empty()) options.set_prompt(kPrompt);
      if (options.max_tokens() == 0) options.set_max_tokens(64);
      KVMIX_RETURN_IF_ERROR(
          ValidateIsInRange(options.max_tokens(), 1, 1 << 20, "max_tokens"));
      KVMIX_RETURN_IF_ERROR(
          ValidateIsNonNegative(options.context_length(), "context_length"));
      return std::make_unique<LongBench>(options);
    });

}  // namespace
}  // namespace kvmix
