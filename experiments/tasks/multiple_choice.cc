// Questions with given answers: the one that the model finds likeliest behind
// the question is its choice.
#include "absl/strings/str_cat.h"
#include "experiments/tasks/jsonl.h"
#include "experiments/tasks/multiple_choice.pb.h"
#include "experiments/tasks/task.h"
#include "experiments/tasks/text_windows.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

const char* Present(const nlohmann::json& line,
                    std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (line.contains(name)) return name;
  return *names.begin();
}

class MultipleChoice final : public Task {
 public:
  explicit MultipleChoice(const MultipleChoiceOptions& options)
      : options_(options) {}

  std::string metric() const override {
    return options_.normalize() ? "accuracy, normalized" : "accuracy";
  }

  absl::StatusOr<std::vector<Window>> Samples(
      const TaskContext& context) const override {
    std::vector<Window> windows;
    int item = 0;
    KVMIX_RETURN_IF_ERROR(
        ReadJsonl(options_.path(), context.limit, options_.skip_bad_lines(),
                  [&](const nlohmann::json& line) -> absl::Status {
                    KVMIX_ASSIGN_OR_RETURN(std::vector<Window> choices,
                                           Choices(context, line, item));
                    for (Window& choice : choices)
                      windows.push_back(std::move(choice));
                    ++item;
                    return absl::OkStatus();
                  }));
    return windows;
  }

  std::vector<std::string> Files() const override { return {options_.path()}; }

 private:
  absl::StatusOr<std::vector<Window>> Choices(const TaskContext& context,
                                              const nlohmann::json& line,
                                              int item) const {
    KVMIX_ASSIGN_OR_RETURN(
        const std::string query,
        JsonText(line, Present(line, {"query", "question"})));
    KVMIX_ASSIGN_OR_RETURN(const std::vector<std::string> choices,
                           JsonTexts(line, "choices"));
    const char* name = Present(line, {"gold", "label", "answer"});
    if (choices.size() < 2)
      return absl::InvalidArgumentError("\"choices\" has fewer than two");
    if (!line.contains(name) || !line[name].is_number_integer() ||
        line[name].get<int64_t>() < 0 ||
        line[name].get<int64_t>() >= static_cast<int64_t>(choices.size())) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", name, "\" is not the index of a choice"));
    }
    std::vector<Window> windows;
    for (size_t i = 0; i < choices.size(); ++i) {
      KVMIX_ASSIGN_OR_RETURN(Window window,
                             AnsweredWindow(context, query, " " + choices[i]));
      if (window.answers.empty())
        return absl::InvalidArgumentError("a choice is empty");
      window.item = item;
      window.right_choice = static_cast<int64_t>(i) == line[name];
      window.choice_length =
          options_.normalize() ? static_cast<int>(choices[i].size()) : 1;
      windows.push_back(std::move(window));
    }
    return windows;
  }

  const MultipleChoiceOptions options_;
};

const bool kRegistered = Registry<Task>::Get().Add<MultipleChoiceOptions>(
    "multiple_choice", "the likeliest of given answers",
    [](const MultipleChoiceOptions& options) -> Registry<Task>::Result {
      if (options.path().empty())
        return absl::InvalidArgumentError("path is empty; name a JSONL file");
      return std::make_unique<MultipleChoice>(options);
    });

}  // namespace
}  // namespace kvmix
