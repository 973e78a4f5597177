// UTF-8 and the little of Unicode that tokenizers need.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace kvmix {

// Bytes of the well-formed UTF-8 character at the start of `text`; 0 if there
// is none (empty, overlong, a surrogate, above U+10FFFF, or cut short).
size_t Utf8CharSize(absl::string_view text);

// Length of the longest well-formed prefix of `text`.
size_t ValidUtf8Prefix(absl::string_view text);

// The property White_Space.
bool IsWhiteSpace(int32_t c);

// A character of words: letters, marks, digits, connectors, joiners (\w of
// UTS 18, annex C).
bool IsWordCharacter(int32_t c);

// The first and the last character of `text`; -1 if malformed or empty.
int32_t FirstCharacter(absl::string_view text);
int32_t LastCharacter(absl::string_view text);

// Unicode Normalization Form C. Malformed bytes are kept and end a run of
// combining marks. Takes O(n log n).
std::string NormalizeNfc(absl::string_view text);

}  // namespace kvmix
