// Sequences of a model on a CUDA device whose caches lie in host memory, and to
// which the CPU attends: KvCache and Attention, as Transformer runs them. The
// path for plans and policies that no kernels serve: codes, and attention over
// them, are the CPU's.
//
// In every layer the chunk's queries, keys and values travel to the host, which
// waits for them, and what was attended travels back. While the device goes on
// to the next layer, the host lets policies work and packs what leaves windows.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvmix/base/device_memory.h"
#include "kvmix/base/thread_pool.h"
#include "models/cuda_sequences.h"

namespace kvmix {

// What attention on the host works with. The sequences of a model share it, as
// one chunk passes the model at a time; memory is kept for the next.
struct HostWork {
  explicit HostWork(ThreadPool& threads) : threads(threads) {}
  ThreadPool& threads;
  // Rows [R, (H + 2 G) D] from the device, then [R, H D] to it.
  PinnedMemory staging;
  std::vector<float> queries, keys, values, attended;  // [R, H or G, D]
};

// `why`: what has no kernels, for WhyOnHost. The options are checked. Errors:
// of KvCache::Create.
absl::StatusOr<std::unique_ptr<CudaSequences>> NewHostSequences(
    const CudaSequencesSetting& setting, const CachePlan& plan,
    std::shared_ptr<const RecencyPolicy> recency,
    const CudaCacheOptions& options, const std::string& why, HostWork& host);

}  // namespace kvmix
