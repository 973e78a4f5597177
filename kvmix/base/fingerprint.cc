#include "kvmix/base/fingerprint.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "absl/strings/str_format.h"

namespace kvmix {

std::string Fingerprint(absl::string_view text) {
  return absl::StrFormat("%016x", XXH3_64bits(text.data(), text.size()));
}

}  // namespace kvmix
