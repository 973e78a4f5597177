// The streams of one layer of a KvCache, as attention reads them.
#pragma once

#include <cstdint>
#include <memory_resource>
#include <vector>

#include "attention/kv_cache.h"
#include "attention/kv_stream.h"

namespace kvmix {

class KvCache::Layer {
 public:
  explicit Layer(std::pmr::memory_resource* memory)
      : keys(memory), values(memory) {}

  // All have the same number of tokens. [G]
  std::pmr::vector<KvStream> keys, values;
  int64_t open_chunk = 0;  // tokens of a chunk between Append and FinishChunk
};

}  // namespace kvmix
