#include "experiments/tasks/text_windows.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

// Where the first of the stops begins in the text.
size_t FirstStop(const std::string& text,
                 const std::vector<std::string>& stops) {
  size_t first = std::string::npos;
  for (const std::string& stop : stops)
    first = std::min(first, text.find(stop));
  return first;
}

int64_t CountWords(const std::string& text) {
  const std::vector<absl::string_view> words =
      absl::StrSplit(text, absl::ByAnyChar(" \t\r\n"), absl::SkipEmpty());
  return static_cast<int64_t>(words.size());
}

}  // namespace

absl::StatusOr<Window> AnsweredWindow(const TaskContext& context,
                                      const std::string& prompt,
                                      const std::string& answer) {
  Window window;
  KVMIX_ASSIGN_OR_RETURN(window.tokens, context.tokenizer->Encode(prompt));
  window.prompt_tokens = static_cast<int64_t>(window.tokens.size());
  window.words = CountWords(prompt) + CountWords(answer);
  KVMIX_ASSIGN_OR_RETURN(
      const std::vector<int32_t> tail,
      context.tokenizer->Encode(answer, {.add_special_tokens = false}));
  if (!tail.empty()) {
    window.answers.push_back({.begin = window.prompt_tokens,
                              .count = static_cast<int64_t>(tail.size())});
    window.tokens.insert(window.tokens.end(), tail.begin(), tail.end());
  }
  if (window.tokens.size() < 2)
    return absl::InvalidArgumentError("has fewer than two tokens");
  if (!tail.empty() && window.prompt_tokens == 0)
    return absl::InvalidArgumentError("has an answer but no prompt");
  if (static_cast<int64_t>(window.tokens.size()) > context.max_position) {
    return absl::InvalidArgumentError(absl::StrCat(
        "takes ", window.tokens.size(), " tokens but the model's context is ",
        context.max_position));
  }
  return window;
}

absl::StatusOr<std::vector<Window>> WindowsOfLines(
    const std::string& path, int limit, bool skip_bad,
    const std::function<absl::StatusOr<Window>(const nlohmann::json&)>&
        sample) {
  std::vector<Window> windows;
  KVMIX_RETURN_IF_ERROR(ReadJsonl(
      path, limit, skip_bad, [&](const nlohmann::json& line) -> absl::Status {
        KVMIX_ASSIGN_OR_RETURN(Window window, sample(line));
        windows.push_back(std::move(window));
        return absl::OkStatus();
      }));
  return windows;
}

absl::StatusOr<Window> PromptWindow(const TaskContext& context,
                                    const std::string& prompt,
                                    Continuation continuation,
                                    int most_tokens) {
  const int64_t room =
      std::min<int64_t>(most_tokens > 0 ? most_tokens : context.max_position,
                        context.max_position) -
      continuation.max_tokens;
  if (room < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("a continuation of ", continuation.max_tokens,
                     " tokens leaves no room for a prompt; lower max_tokens"));
  }
  Window window;
  KVMIX_ASSIGN_OR_RETURN(window.tokens, context.tokenizer->Encode(prompt));
  auto& tokens = window.tokens;
  if (tokens.empty()) return absl::InvalidArgumentError("the prompt is empty");
  if (static_cast<int64_t>(tokens.size()) > room) {
    const int64_t head = room / 2;
    tokens.erase(tokens.begin() + head, tokens.end() - (room - head));
  }
  window.prompt_tokens = static_cast<int64_t>(tokens.size());
  window.continue_tokens = continuation.max_tokens;
  window.prompt = prompt;
  window.reference = absl::StrCat(continuation.reference, "\n",
                                  absl::StrJoin(continuation.stops, "\n"));
  const Tokenizer* tokenizer = context.tokenizer;
  const auto stops = continuation.stops;
  window.is_finished = [tokenizer, stops](absl::Span<const int32_t> ids) {
    const absl::StatusOr<std::string> text = tokenizer->Decode(ids);
    return text.ok() && FirstStop(*text, stops) != std::string::npos;
  };
  window.judge =
      [tokenizer, continuation = std::move(continuation)](
          absl::Span<const int32_t> ids) -> absl::StatusOr<JudgedText> {
    KVMIX_ASSIGN_OR_RETURN(std::string text, tokenizer->Decode(ids));
    text = text.substr(0, FirstStop(text, continuation.stops));
    const double score = continuation.score(text);
    return JudgedText{.text = std::move(text), .score = score};
  };
  return window;
}

}  // namespace kvmix
