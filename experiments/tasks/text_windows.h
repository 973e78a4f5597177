// Windows made of texts, for tasks.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "experiments/tasks/jsonl.h"
#include "experiments/tasks/task.h"

namespace kvmix {

// A prompt with an answer behind it, both scored; the answer may be empty.
absl::StatusOr<Window> AnsweredWindow(const TaskContext& context,
                                      const std::string& prompt,
                                      const std::string& answer);

// A window for each line of a JSONL file. Arguments and errors as of ReadJsonl.
absl::StatusOr<std::vector<Window>> WindowsOfLines(
    const std::string& path, int limit, bool skip_bad,
    const std::function<absl::StatusOr<Window>(const nlohmann::json&)>& sample);

struct Continuation {
  int max_tokens = 0;
  // Texts that end it; they are cut off.
  std::vector<std::string> stops;
  std::function<double(const std::string& text)> score;
  std::string reference;
};
// A prompt to continue. One that is too long loses its middle, as LongBench
// does it, so that it and its continuation fit in `most_tokens` (0: the
// model's context).
absl::StatusOr<Window> PromptWindow(const TaskContext& context,
                                    const std::string& prompt,
                                    Continuation continuation,
                                    int most_tokens = 0);

}  // namespace kvmix
