// Lists of words of which some stand more often than the others.
//
//   " brown cat brown lamp ... ? most = brown ;"
// The embedded model has not learned to count; these are for larger ones.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "experiments/synthetic/synthetic_text.h"

namespace kvmix {

// `asked` words are asked for, most frequent first, each standing 1.5 times as
// often as the next; the most frequent makes up a fifth of the list.
absl::StatusOr<SyntheticDocument> WordListDocument(int tokens, int asked,
                                                   uint64_t seed,
                                                   uint64_t index);

}  // namespace kvmix
