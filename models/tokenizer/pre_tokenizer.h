// Cuts text into the words that BPE encodes one by one.
//
// A PreTokenizer is a sequence of steps; each step treats every piece that the
// steps before it made. Patterns are written for Oniguruma (as in
// tokenizer.json files) and run by PCRE2; Translate refuses what the two read
// differently.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvmix {

// The published patterns (each model's tokenizer.json; digits as \p{N}).
// GPT-2's, and the default of the "ByteLevel" pre-tokenizer.
extern const char kGpt2Pattern[];
extern const char kLlama3Pattern[];
extern const char kQwen2Pattern[];

class Regex {
 public:
  // `pattern` in Oniguruma's syntax. INVALID_ARGUMENT or UNIMPLEMENTED says
  // what in it cannot be used.
  static absl::StatusOr<Regex> Compile(absl::string_view pattern);

  // A pattern that matches `text` literally.
  static std::string Escape(absl::string_view text);

  // Calls visit(begin, end, is_match) for the matches and what lies between
  // them, in order. `text` is well-formed UTF-8. RESOURCE_EXHAUSTED if the
  // pattern backtracks too much.
  absl::Status Visit(
      absl::string_view text,
      const std::function<absl::Status(size_t, size_t, bool)>& visit) const;

 private:
  struct Code;
  explicit Regex(std::shared_ptr<const Code> code) : code_(std::move(code)) {}
  std::shared_ptr<const Code> code_;
};

class PreTokenizer {
 public:
  // What becomes of a match.
  enum class Behavior {
    kIsolated,            // a piece of its own
    kRemoved,             // dropped
    kMergedWithPrevious,  // joins the piece before it
    kMergedWithNext,      // joins the piece after it
  };
  enum class PrependAt { kEveryPiece, kTextStart };

  // `invert`: what lies between the matches is treated as the match.
  void AddSplit(Regex regex, Behavior behavior, bool invert);
  // Puts `prefix` before pieces that do not start with it. kTextStart: only
  // where nothing precedes the text; no AddSplit may come before such a step.
  void AddPrepend(absl::string_view prefix, PrependAt where);
  void AddReplace(absl::string_view from, absl::string_view to);
  // Cuts before U+2581 behind another character. Changes no ids if the
  // vocabulary has no token across such a place; makes words cacheable.
  void AddCutBeforeSpaceMark();

  // Calls visit(word) for the words of `text`; words live during the call only.
  // Malformed bytes of `text` become words of their own at the first split.
  // at_text_start: nothing precedes `text`.
  absl::Status Split(
      absl::string_view text, bool at_text_start,
      const std::function<absl::Status(absl::string_view)>& visit) const;

 private:
  using Visitor = std::function<absl::Status(absl::string_view)>;
  using Step = std::function<absl::Status(
      absl::string_view piece, bool at_text_start, const Visitor& next)>;
  absl::Status Run(size_t step, absl::string_view piece, bool at_text_start,
                   const Visitor& visit) const;

  std::vector<Step> steps_;
};

}  // namespace kvmix
