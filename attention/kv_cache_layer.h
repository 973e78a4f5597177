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
      : keys(memory), values(memory), heads(memory), recent_queries(memory) {}

  // What an eviction policy knows of the tokens of a head, in their order.
  struct HeadRecord {
    explicit HeadRecord(std::pmr::memory_resource* memory)
        : positions(memory), received(memory) {}
    std::pmr::vector<int64_t> positions;  // in the text
    std::pmr::vector<float> received;     // attention, if the policy asks
  };

  // Keys and values of a head have the same tokens in the same order; heads
  // may have different ones. [G]
  std::pmr::vector<KvStream> keys, values;
  int64_t tokens_seen = 0;  // appended so far
  int64_t open_chunk = 0;   // tokens of a chunk between Append and FinishChunk
  // Empty with a policy that keeps all.
  std::pmr::vector<HeadRecord> heads;      // [G]
  std::pmr::vector<float> recent_queries;  // [tokens, H, D], the newest last
  int num_query_heads = 0;                 // H
  float query_scale = 0;
};

}  // namespace kvmix
