#include "quant/bit_packing.h"

#include <algorithm>

namespace kvmix {

void PackCodes(const uint32_t* codes, int count, int bits, uint32_t* words,
               int num_words) {
  uint64_t pending = 0;  // bits that do not fill a word yet, the oldest lowest
  int num_pending = 0;
  uint32_t* const end = words + num_words;
  for (int i = 0; i < count; ++i) {
    pending |= static_cast<uint64_t>(codes[i]) << num_pending;
    num_pending += bits;
    if (num_pending >= 32 && words != end) {
      *words++ = static_cast<uint32_t>(pending);
      pending >>= 32;
      num_pending -= 32;
    }
  }
  if (num_pending > 0 && words != end)
    *words++ = static_cast<uint32_t>(pending);
  std::fill(words, end, 0u);
}

}  // namespace kvmix
