// Added tokens: strings that are one token wherever they stand in a text,
// whatever BPE would make of them. The longest at the leftmost place wins.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "models/tokenizer/literal_matcher.h"

namespace kvmix {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false;      // read from text on request only
  bool single_word = false;  // not beside a word character
  bool lstrip = false;       // swallows the white space on its left
  bool rstrip = false;       // and on its right
  bool normalized = false;   // looked for after normalization, not before
};

class AddedTokens {
 public:
  void Add(const AddedToken& token);

  // Calls visit(section, kNoToken) for the text between added tokens and
  // visit(section, id) for the tokens, in order. Unless parse_special, the text
  // of a special token is ordinary text.
  absl::Status Split(absl::string_view text, bool parse_special,
                     const std::function<absl::Status(absl::string_view,
                                                      int32_t)>& visit) const;

 private:
  std::vector<AddedToken> tokens_;
  LiteralMatcher matcher_;  // content -> index into tokens_
};

}  // namespace kvmix
