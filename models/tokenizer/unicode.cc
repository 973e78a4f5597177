#include "models/tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kvmix/base/check.h"

namespace kvmix {
namespace {

const utf8proc_uint8_t* Bytes(absl::string_view text) {
  return reinterpret_cast<const utf8proc_uint8_t*>(text.data());
}

// Sorts each run of combining marks by combining class, stably. (utf8proc sorts
// by insertion: a megabyte of marks in the wrong order would take minutes.)
void OrderCombiningMarks(std::vector<int32_t>& chars) {
  const auto combining_class = [](int32_t c) {
    return utf8proc_get_property(c)->combining_class;
  };
  for (auto begin = chars.begin(); begin != chars.end();) {
    if (combining_class(*begin) == 0) {
      ++begin;
      continue;
    }
    const auto end = std::find_if(
        begin, chars.end(), [&](int32_t c) { return combining_class(c) == 0; });
    std::stable_sort(begin, end, [&](int32_t a, int32_t b) {
      return combining_class(a) < combining_class(b);
    });
    begin = end;
  }
}

void AppendUtf8(int32_t c, std::string* out) {
  utf8proc_uint8_t utf8[4];
  const auto n = utf8proc_encode_char(c, utf8);
  out->append(reinterpret_cast<const char*>(utf8), n);
}

// `text` is well-formed.
void AppendNfc(absl::string_view text, std::string* out) {
  std::vector<int32_t> chars;
  chars.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    int32_t c;
    pos += utf8proc_iterate(Bytes(text) + pos, text.size() - pos, &c);
    constexpr int kLongestDecomposition = 4;  // of one character, canonical
    int32_t parts[kLongestDecomposition];
    int last_boundclass = 0;
    const auto n = utf8proc_decompose_char(
        c, parts, kLongestDecomposition, UTF8PROC_DECOMPOSE, &last_boundclass);
    KVMIX_CHECK(n >= 0 && n <= kLongestDecomposition);
    chars.insert(chars.end(), parts, parts + n);
  }
  OrderCombiningMarks(chars);
  for (auto begin = chars.begin(); begin != chars.end();) {
    // U+11A7 composes with nothing. utf8proc 2.8 takes it for the first of the
    // final consonants that follow it, and drops it.
    const auto end = std::find(begin, chars.end(), 0x11A7);
    const auto length = utf8proc_normalize_utf32(
        &*begin, end - begin,
        static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    KVMIX_CHECK(length >= 0);
    for (auto c = begin; c != begin + length; ++c) AppendUtf8(*c, out);
    if (end == chars.end()) break;
    AppendUtf8(*end, out);
    begin = end + 1;
  }
}

}  // namespace

size_t Utf8CharSize(absl::string_view text) {
  if (text.empty()) return 0;
  if (static_cast<uint8_t>(text[0]) < 0x80) return 1;
  int32_t c;
  const auto n = utf8proc_iterate(Bytes(text), text.size(), &c);
  return n > 0 ? n : 0;
}

size_t ValidUtf8Prefix(absl::string_view text) {
  size_t pos = 0;
  while (const size_t n = Utf8CharSize(text.substr(pos))) pos += n;
  return pos;
}

bool IsWhiteSpace(int32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool IsWordCharacter(int32_t c) {
  switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      // The joiners, and the circled and squared letters, which are symbols by
      // category and Alphabetic by property.
      return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) ||
             (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
             (c >= 0x1F170 && c <= 0x1F189);
  }
}

int32_t FirstCharacter(absl::string_view text) {
  int32_t c = -1;
  utf8proc_iterate(Bytes(text), text.size(), &c);
  return c;
}

int32_t LastCharacter(absl::string_view text) {
  for (size_t n = 1; n <= std::min<size_t>(4, text.size()); ++n) {
    const absl::string_view tail = text.substr(text.size() - n);
    if (Utf8CharSize(tail) == n) return FirstCharacter(tail);
  }
  return -1;
}

std::string NormalizeNfc(absl::string_view text) {
  // Characters below U+0300 are in NFC whatever stands beside them there, and
  // their UTF-8 bytes are those below 0xCC.
  if (std::all_of(text.begin(), text.end(),
                  [](char c) { return static_cast<uint8_t>(c) < 0xCC; })) {
    return std::string(text);
  }
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t valid = ValidUtf8Prefix(text);
    AppendNfc(text.substr(0, valid), &out);
    text.remove_prefix(valid);
    if (text.empty()) break;
    out.push_back(text[0]);
    text.remove_prefix(1);
  }
  return out;
}

}  // namespace kvmix
