// A stable 64-bit name of a text, as 16 hex digits: the folder name of an
// experiment's results. The same text has the same fingerprint on every machine
// and in every version (XXH3, 64 bits).
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace kvmix {

std::string Fingerprint(absl::string_view text);

}  // namespace kvmix
