#include "experiments/tasks/document_window.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

constexpr EncodeOptions kTextOnly = {.add_special_tokens = false};

int64_t CountWords(const std::vector<int32_t>& tokens,
                   const Tokenizer& tokenizer) {
  int64_t words = 0;
  bool inside = false;
  for (size_t i = 1; i < tokens.size(); ++i) {
    for (unsigned char c : tokenizer.TokenText(tokens[i])) {
      const bool space = absl::ascii_isspace(c);
      words += !space && !inside;
      inside = !space;
    }
  }
  return words;
}

// The tokens that hold bytes [begin, begin + length) of the text; starts[i] is
// the byte at which token i starts.
Window::Span TokensOfBytes(const std::vector<int64_t>& starts, int64_t begin,
                           int64_t length) {
  const auto first = std::upper_bound(starts.begin(), starts.end(), begin) - 1;
  const auto last = std::lower_bound(first, starts.end(), begin + length);
  return {.begin = first - starts.begin(), .count = last - first};
}

}  // namespace

absl::StatusOr<std::optional<int32_t>> LeadingBos(const Tokenizer& tokenizer) {
  KVMIX_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer.Encode(""));
  if (!ids.empty() && tokenizer.bos_id() && ids[0] == *tokenizer.bos_id())
    return tokenizer.bos_id();
  return std::nullopt;
}

Window TextWindow(absl::Span<const int32_t> text, std::optional<int32_t> bos,
                  const Tokenizer& tokenizer) {
  Window window;
  window.tokens.reserve(text.size() + 1);
  if (bos) window.tokens.push_back(*bos);
  for (int32_t token : text) window.tokens.push_back(token);
  window.prompt_tokens = static_cast<int64_t>(window.tokens.size());
  window.words = CountWords(window.tokens, tokenizer);
  return window;
}

absl::StatusOr<Window> DocumentWindow(const SyntheticDocument& document,
                                      const Tokenizer& tokenizer) {
  KVMIX_ASSIGN_OR_RETURN(const std::optional<int32_t> bos,
                         LeadingBos(tokenizer));
  KVMIX_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                         tokenizer.Encode(document.text, kTextOnly));
  Window window = TextWindow(ids, bos, tokenizer);
  std::vector<int64_t> starts;
  int64_t at = 0;
  if (bos) starts.push_back(0);
  for (int32_t id : ids) {
    starts.push_back(at);
    at += static_cast<int64_t>(tokenizer.TokenText(id).size());
  }
  if (at != static_cast<int64_t>(document.text.size())) {
    return absl::UnimplementedError(
        "the model's tokenizer does not keep the bytes of a text, so that the "
        "tokens of an answer cannot be told; use a byte-level one");
  }
  for (const Answer& answer : document.answers)
    window.answers.push_back(
        TokensOfBytes(starts, answer.begin, answer.length));
  if (!document.answers.empty()) {
    window.prompt_tokens =
        TokensOfBytes(starts, document.answers[0].question, 1).begin;
  }
  return window;
}

}  // namespace kvmix
