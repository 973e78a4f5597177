// The user's own prompts, with labels of the groups that they belong to.
#include "experiments/tasks/jsonl.h"
#include "experiments/tasks/prompts.pb.h"
#include "experiments/tasks/task.h"
#include "experiments/tasks/text_scores.h"
#include "experiments/tasks/text_windows.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"

namespace kvmix {
namespace {

class PromptsTask final : public Task {
 public:
  explicit PromptsTask(const PromptsOptions& options) : options_(options) {}

  std::string metric() const override {
    return options_.continue_tokens() > 0 ? "F1" : "";
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
    KVMIX_ASSIGN_OR_RETURN(const std::string prompt, JsonText(line, "prompt"));
    std::string group, completion;
    if (line.contains("group")) {
      KVMIX_ASSIGN_OR_RETURN(group, JsonText(line, "group"));
    }
    if (line.contains("completion")) {
      KVMIX_ASSIGN_OR_RETURN(completion, JsonText(line, "completion"));
    }
    absl::StatusOr<Window> window =
        options_.continue_tokens() > 0
            ? PromptWindow(context, prompt,
                           {.max_tokens = options_.continue_tokens(),
                            .stops = {},
                            .score =
                                [completion](const std::string& text) {
                                  return WordF1(text, completion);
                                },
                            .reference = completion})
            : AnsweredWindow(context, prompt, completion);
    if (window.ok()) window->group = group;
    return window;
  }

  const PromptsOptions options_;
};

const bool kRegistered = Registry<Task>::Get().Add<PromptsOptions>(
    "prompts", "your own prompts, with quality for each group of them",
    [](const PromptsOptions& options) -> Registry<Task>::Result {
      if (options.path().empty())
        return absl::InvalidArgumentError("path is empty; name a JSONL file");
      KVMIX_RETURN_IF_ERROR(
          ValidateIsNonNegative(options.continue_tokens(), "continue_tokens"));
      return std::make_unique<PromptsTask>(options);
    });

}  // namespace
}  // namespace kvmix
