// Questions with a number for an answer, behind worked examples; the model
// writes its own working, and the final number must be the right one (GSM8K).
#include "absl/strings/str_cat.h"
#include "experiments/tasks/few_shot.pb.h"
#include "experiments/tasks/jsonl.h"
#include "experiments/tasks/task.h"
#include "experiments/tasks/text_scores.h"
#include "experiments/tasks/text_windows.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"

namespace kvmix {
namespace {

struct Exercise {
  std::string question, answer;
};

class FewShot final : public Task {
 public:
  explicit FewShot(const FewShotOptions& options) : options_(options) {}

  std::string metric() const override { return "exact match"; }

  absl::StatusOr<std::vector<Window>> Samples(
      const TaskContext& context) const override {
    const int shots = options_.shots();
    const bool own_shots = options_.shots_path().empty();
    const int limit =
        context.limit > 0 && own_shots ? context.limit + shots : context.limit;
    KVMIX_ASSIGN_OR_RETURN(std::vector<Exercise> exercises,
                           Read(options_.path(), limit));
    std::vector<Exercise> examples;
    if (own_shots) {
      if (static_cast<int>(exercises.size()) <= shots) {
        return absl::InvalidArgumentError(absl::StrCat(
            options_.path(), " has ", exercises.size(), " lines but ", shots,
            " are needed as examples; lower shots or name a shots_path"));
      }
      examples.assign(exercises.begin(), exercises.begin() + shots);
      exercises.erase(exercises.begin(), exercises.begin() + shots);
    } else if (shots > 0) {
      KVMIX_ASSIGN_OR_RETURN(examples, Read(options_.shots_path(), shots));
      if (static_cast<int>(examples.size()) < shots) {
        return absl::InvalidArgumentError(
            absl::StrCat(options_.shots_path(), " has ", examples.size(),
                         " examples but shots is ", shots));
      }
    }
    std::string prefix;
    for (const Exercise& example : examples)
      absl::StrAppend(&prefix, Asked(example), " ", example.answer, "\n\n");
    std::vector<Window> windows;
    for (const Exercise& exercise : exercises) {
      const std::string right = FinalNumber(exercise.answer);
      KVMIX_ASSIGN_OR_RETURN(
          Window window,
          PromptWindow(context, prefix + Asked(exercise),
                       {.max_tokens = options_.max_tokens(),
                        .stops = {"\n\n", "\nQuestion:"},
                        .score =
                            [right](const std::string& text) {
                              return FinalNumber(text) == right ? 1.0 : 0.0;
                            },
                        .reference = right}));
      windows.push_back(std::move(window));
    }
    return windows;
  }

  std::vector<std::string> Files() const override {
    if (options_.shots_path().empty()) return {options_.path()};
    return {options_.path(), options_.shots_path()};
  }

 private:
  static std::string Asked(const Exercise& exercise) {
    // No space behind it: that is a part of the answer's first token.
    return absl::StrCat("Question: ", exercise.question, "\nAnswer:");
  }

  absl::StatusOr<std::vector<Exercise>> Read(const std::string& path,
                                             int limit) const {
    std::vector<Exercise> exercises;
    KVMIX_RETURN_IF_ERROR(ReadJsonl(
        path, limit, options_.skip_bad_lines(),
        [&](const nlohmann::json& line) -> absl::Status {
          Exercise exercise;
          KVMIX_ASSIGN_OR_RETURN(exercise.question, JsonText(line, "question"));
          KVMIX_ASSIGN_OR_RETURN(exercise.answer, JsonText(line, "answer"));
          if (FinalNumber(exercise.answer).empty())
            return absl::InvalidArgumentError("\"answer\" holds no number");
          exercises.push_back(std::move(exercise));
          return absl::OkStatus();
        }));
    return exercises;
  }

  const FewShotOptions options_;
};

const bool kRegistered = Registry<Task>::Get().Add<FewShotOptions>(
    "few_shot", "worked examples and a question; exact match of the number",
    [](FewShotOptions options) -> Registry<Task>::Result {
      if (options.path().empty())
        return absl::InvalidArgumentError("path is empty; name a JSONL file");
      if (!options.has_shots()) options.set_shots(4);
      if (options.max_tokens() == 0) options.set_max_tokens(128);
      KVMIX_RETURN_IF_ERROR(
          ValidateIsInRange(options.shots(), 0, 1000, "shots"));
      KVMIX_RETURN_IF_ERROR(
          ValidateIsInRange(options.max_tokens(), 1, 1 << 20, "max_tokens"));
      return std::make_unique<FewShot>(options);
    });

}  // namespace
}  // namespace kvmix
