// What happens to text before it is cut into words.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "models/tokenizer/unicode.h"

namespace kvmix {

// Steps, applied in the order in which they were added.
class Normalizer {
 public:
  void AddNfc() { steps_.push_back(NormalizeNfc); }

  // Of text that is not empty.
  void AddPrepend(absl::string_view prefix) {
    steps_.push_back([prefix = std::string(prefix)](absl::string_view text) {
      return text.empty() ? std::string() : absl::StrCat(prefix, text);
    });
  }

  void AddReplace(absl::string_view from, absl::string_view to) {
    steps_.push_back([from = std::string(from),
                      to = std::string(to)](absl::string_view text) {
      return absl::StrReplaceAll(text, {{from, to}});
    });
  }

  // SentencePiece's remove_extra_whitespaces: no spaces at the ends, one
  // between words. At the right end it takes U+2581 for a space, too.
  void AddRemoveExtraSpaces() {
    steps_.push_back([](absl::string_view text) {
      while (absl::ConsumeSuffix(&text, " ") ||
             absl::ConsumeSuffix(&text, "\xE2\x96\x81")) {
      }
      std::string out;
      for (char c : text)
        if (c != ' ' || (!out.empty() && out.back() != ' ')) out.push_back(c);
      return out;
    });
  }

  std::string Apply(absl::string_view text) const {
    std::string out(text);
    for (const auto& step : steps_) out = step(out);
    return out;
  }

 private:
  std::vector<std::function<std::string(absl::string_view)>> steps_;
};

}  // namespace kvmix
