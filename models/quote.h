// Quote(text): text that came from a file, made fit for an error message:
// quoted, control and non-ASCII bytes escaped, cut after 80 bytes.
#pragma once

#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace kvmix {

inline std::string Quote(absl::string_view text) {
  constexpr size_t kMaxBytes = 80;
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, kMaxBytes)),
                      text.size() > kMaxBytes ? "..." : "", "\"");
}

}  // namespace kvmix
