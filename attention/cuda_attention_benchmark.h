// Speed of attention on a CUDA device: bytes of the cache a second, against a
// device copy measured beside it.
#pragma once

#include <cstdint>
#include <ostream>
#include <vector>

#include "absl/status/status.h"

namespace kvmix {

struct CudaBenchmarkOptions {
  int head_dim = 128;
  int kv_heads = 8;
  std::vector<int> groups = {1, 4, 8};  // query heads of a KV head
  std::vector<int64_t> depths = {2048, 8192, 32768};
  int64_t prefill_queries = 512;
  // Sequences are added to a batch until it takes so many bytes, more than
  // caches hold.
  int64_t batch_bytes = int64_t{512} << 20;
  int max_batch = 64;
  int64_t copy_bytes = int64_t{1} << 30;
  int repetitions = 15;  // the median counts
};

// Writes tables in Markdown.
absl::Status RunCudaAttentionBenchmark(const CudaBenchmarkOptions& options,
                                       std::ostream& out);

}  // namespace kvmix
