#include "attention/eviction_step.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace kvmix {

absl::Status CheckDropped(const EvictionState& state,
                          const std::vector<TokenList>& dropped) {
  const auto broken = [&](size_t head, const std::string& what) {
    return absl::InternalError(absl::StrCat("layer ", state.layer, ", KV head ",
                                            head, ": the eviction policy ",
                                            what));
  };
  if (dropped.size() != state.heads.size())
    return broken(0, "answered for another number of heads");
  for (size_t h = 0; h < dropped.size(); ++h) {
    int64_t last = state.heads[h].first_candidate - 1;
    for (const int64_t token : dropped[h]) {
      if (token <= last || token >= state.heads[h].num_tokens)
        return broken(h, absl::StrCat("names token ", token, " behind ", last));
      last = token;
    }
    if (static_cast<int64_t>(dropped[h].size()) % state.multiple != 0)
      return broken(
          h, absl::StrCat("names ", dropped[h].size(),
                          " tokens, not a multiple of ", state.multiple));
  }
  return absl::OkStatus();
}

}  // namespace kvmix
