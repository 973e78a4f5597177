#include "experiments/token_file.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "experiments/paths.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {

absl::StatusOr<std::vector<int32_t>> ReadTokenFile(const std::string& path) {
  KVMIX_ASSIGN_OR_RETURN(const std::string file, ResolveInputPath(path));
  KVMIX_ASSIGN_OR_RETURN(const std::string text, ReadFile(file));
  std::vector<int32_t> ids;
  for (absl::string_view word :
       absl::StrSplit(text, absl::ByAnyChar(" \t\r\n"), absl::SkipEmpty())) {
    int32_t id;
    if (!absl::SimpleAtoi(word, &id) || id < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": \"", word.substr(0, 40), "\" is no token id"));
    }
    ids.push_back(id);
  }
  return ids;
}

}  // namespace kvmix
