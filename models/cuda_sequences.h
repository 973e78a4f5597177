// CudaSequences: the cached tokens of a batch of sequences as cuda_model.cc
// passes chunks over them. Where kernels serve the plan and the policies, they
// are packed on the device; else they lie in host memory
// (cuda_host_sequences.h).
//
// Letters: G = KV heads, H = query heads, D = head_dim, R = tokens of a chunk,
// those of all its sequences one after another.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention/cuda_kv_cache.h"
#include "kvmix/base/cuda_graph.h"
#include "models/device_model.h"

namespace kvmix {

class CudaSequences : public DeviceSequences {
 public:
  virtual int num_sequences() const = 0;

  // A chunk passes in these calls: BeginChunk, RunLayer for one layer after
  // another, EndChunk, all on one stream. Every sequence at most once. Errors:
  // no room, what the policies say, and DataLoss for numbers beyond the range
  // of full precision, which kernels tell in CheckNumbers.
  virtual absl::Status BeginChunk(absl::Span<const SequenceChunk> chunk,
                                  cudaStream_t stream) = 0;
  // Stores the chunk's keys and values, attends, and lets the policies do what
  // is theirs. On the device: qkv [R, (H + 2 G) D] float, queries and keys
  // after RoPE; attended [R, H D] numbers of the weights' type.
  virtual absl::Status RunLayer(int layer, const float* qkv, void* attended,
                                cudaStream_t stream) = 0;
  virtual absl::Status EndChunk(cudaStream_t stream) = 0;
  // Waits for `stream`.
  virtual absl::Status CheckNumbers(cudaStream_t stream) = 0;

  // Between BeginChunk and EndChunk. Equal keys: what RunLayer launches for one
  // chunk of single tokens serves the other. None: the host takes part in every
  // layer, so that nothing can be captured.
  virtual std::optional<uint64_t> LaunchKey() const = 0;

  CudaGraph decode;  // a decode step, captured
};

// What is attended with: rows of `type` come out.
struct CudaSequencesSetting {
  CacheShape shape;  // with the model's key rotation
  int num_heads = 0;
  CudaAttentionOptions attention;
  CudaNumber type = CudaNumber::kFloat;
};

struct HostWork;  // cuda_host_sequences.h

// Packed on the device if kernels serve the plan and the policies
// (CudaKvCache::Create), else in host memory. `host` outlives them. Errors: of
// CudaKvCache::Create and KvCache::Create.
absl::StatusOr<std::unique_ptr<CudaSequences>> NewCudaSequences(
    const CudaSequencesSetting& setting, const CachePlan& plan,
    std::shared_ptr<const RecencyPolicy> recency,
    const SequencesOptions& options, HostWork& host);

}  // namespace kvmix
