#include "models/tokenizer/added_tokens.h"

#include <algorithm>

#include "kvmix/base/status_macros.h"
#include "models/tokenizer/bpe.h"
#include "models/tokenizer/unicode.h"

namespace kvmix {
namespace {

size_t TrailingWhiteSpace(absl::string_view text) {
  const size_t size = text.size();
  while (IsWhiteSpace(LastCharacter(text))) {
    size_t n = 1;
    while (Utf8CharSize(text.substr(text.size() - n)) != n) ++n;
    text.remove_suffix(n);
  }
  return size - text.size();
}

size_t LeadingWhiteSpace(absl::string_view text) {
  size_t pos = 0;
  while (IsWhiteSpace(FirstCharacter(text.substr(pos))))
    pos += Utf8CharSize(text.substr(pos));
  return pos;
}

bool IsInsideWord(absl::string_view before, absl::string_view after) {
  return IsWordCharacter(LastCharacter(before)) ||
         IsWordCharacter(FirstCharacter(after));
}

}  // namespace

void AddedTokens::Add(const AddedToken& token) {
  matcher_.Add(token.content, tokens_.size());
  tokens_.push_back(token);
}

absl::Status AddedTokens::Split(
    absl::string_view text, bool parse_special,
    const std::function<absl::Status(absl::string_view, int32_t)>& visit)
    const {
  if (matcher_.empty())
    return text.empty() ? absl::OkStatus() : visit(text, kNoToken);
  size_t done = 0;  // text[0, done) has been visited
  for (size_t pos = 0; pos < text.size();) {
    const auto match = matcher_.LongestPrefix(text.substr(pos));
    if (match.size == 0) {
      ++pos;
      continue;
    }
    const AddedToken& token = tokens_[match.value];
    size_t begin = pos;
    size_t end = pos + match.size;
    // A match that does not count hides shorter ones inside it, too.
    pos = end;
    if (token.special && !parse_special) continue;
    if (token.single_word &&
        IsInsideWord(text.substr(0, begin), text.substr(end))) {
      continue;
    }
    if (token.lstrip) {
      begin -= TrailingWhiteSpace(text.substr(0, begin));
      begin = std::max(begin, done);
    }
    if (token.rstrip) end += LeadingWhiteSpace(text.substr(end));
    if (begin > done)
      KVMIX_RETURN_IF_ERROR(visit(text.substr(done, begin - done), kNoToken));
    KVMIX_RETURN_IF_ERROR(visit(text.substr(begin, end - begin), token.id));
    done = pos = end;
  }
  if (done < text.size()) return visit(text.substr(done), kNoToken);
  return absl::OkStatus();
}

}  // namespace kvmix
