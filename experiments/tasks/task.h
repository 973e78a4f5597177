// A task: samples for a model, and how what it makes of them is scored.
//
// A task is a component of kind `task`: it registers itself in the last lines
// of its own .cc, and a dataset of a config names it. Three ways of scoring:
//   answers given with the prompt   Window::answers, all tokens teacher-forced
//   choices                         Window::item, the likeliest one counts
//   free continuations              Window::continue_tokens and Window::judge
// Score and standard error are taken over samples, and the difference to full
// precision is paired sample by sample.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "experiments/tasks/window.h"
#include "models/tokenizer/tokenizer.h"

namespace kvmix {

struct TaskContext {
  const Tokenizer* tokenizer = nullptr;  // outlives the windows
  uint64_t seed = 0;
  int64_t max_position = 0;  // tokens of a window, continuation included
  int limit = 0;             // samples at most; 0: all
};

class Task {
 public:
  virtual ~Task() = default;

  // Errors: files that cannot be read, samples that do not fit in the context.
  virtual absl::StatusOr<std::vector<Window>> Samples(
      const TaskContext& context) const = 0;

  // Files that samples come from, as the options name them: a sweep notes what
  // they hold.
  virtual std::vector<std::string> Files() const { return {}; }

  // What the score is: "exact match", "F1". "": none, judged by loss or by
  // answers alone.
  virtual std::string metric() const { return ""; }
};

}  // namespace kvmix
