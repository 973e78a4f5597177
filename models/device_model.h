// DeviceModel: the model of transformer.h on a device with memory of its own.
//
// It differs from Transformer where memory decides: all sequences of a batch
// lie in one cache of one plan, with room for a number of tokens that is fixed
// when it is made. A cache that no kernels of the device serve lies in the
// host's memory, and the CPU attends to it: codes are the CPU's either way, and
// DeviceSequences says which it is. Nothing here needs CUDA: a program that
// links
// //models:cuda_model can load a model onto a CUDA device, any other says that
// it cannot.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention/kv_cache.h"
#include "attention/memory_ledger.h"
#include "kvmix/base/thread_pool.h"
#include "kvmix/cache_plan.pb.h"
#include "kvmix/eviction/eviction_policy.h"
#include "kvmix/layer_trace.h"
#include "kvmix/recency/recency_policy.h"
#include "models/backward.h"
#include "models/model_config.h"
#include "models/transformer.h"
#include "models/weight_source.h"

namespace kvmix {

struct DeviceModelOptions {
  // kFloat32 or kBFloat16: weights, and the inputs of products; sums are in
  // float.
  ComputeType compute = ComputeType::kFloat32;
  // Replay a decode step as one graph.
  bool use_graphs = true;
};

struct SequencesOptions {
  int num_sequences = 1;
  int64_t max_tokens = 0;        // of each sequence
  int64_t max_chunk_tokens = 1;  // of all sequences in one pass
  std::shared_ptr<const EvictionPolicy> eviction = nullptr;  // not null
};

// The cached tokens of a batch of sequences. It must not outlive its model.
class DeviceSequences {
 public:
  virtual ~DeviceSequences() = default;
  // Those that have left included.
  virtual int64_t num_tokens(int sequence) const = 0;
  // Bytes by cause, of the device or, with WhyOnHost, of the host; total() is
  // what was allocated.
  virtual MemoryLedger ledger() const = 0;
  // What computes decode attention over this cache, for records; "host: ..."
  // where the CPU does.
  virtual std::string AttentionKernels() const = 0;
  // What has no kernels on the device, so that the cache lies in host memory
  // and the CPU attends to it; empty: it lies on the device.
  virtual std::string WhyOnHost() const = 0;
  virtual void Reset(int sequence) = 0;
};

struct DeviceChunk {
  int sequence = 0;
  absl::Span<const int32_t> tokens;  // at least one
  WantLogits logits = WantLogits::kAll;
};

// Bytes of the device's memory, as allocated and as the driver counts.
struct DeviceMemoryUse {
  int64_t model = 0;   // weights, angles, the workspace of matrix products
  int64_t passes = 0;  // activations and logits, kept from pass to pass
  // What is no longer free since before the model was loaded: the two above and
  // all caches, in whole pages; and what the driver takes for code and graphs.
  int64_t in_use = 0;
  int64_t free = 0;
};

// One thread at a time.
class DeviceModel {
 public:
  virtual ~DeviceModel() = default;
  virtual const ModelConfig& config() const = 0;
  virtual int64_t weight_bytes() const = 0;  // on the device
  virtual absl::StatusOr<DeviceMemoryUse> MemoryUse() const = 0;

  // Errors: those of KvCache::Create; Unimplemented for an eviction policy
  // beside a sliding window; ResourceExhausted, with the bytes, if the device
  // has no room.
  virtual absl::StatusOr<std::unique_ptr<DeviceSequences>> NewSequences(
      const CachePlan& plan, std::shared_ptr<const RecencyPolicy> recency,
      const SequencesOptions& options) = 0;

  // Transformer::Forward over sequences of one cache; chunk i of `batch` is
  // chunk i to `consume`. Every sequence at most once.
  virtual absl::Status Forward(DeviceSequences& sequences,
                               absl::Span<const DeviceChunk> batch,
                               const LogitsConsumer& consume) = 0;

  // TraceLayers of backward.h; the traces lie on the host.
  virtual absl::StatusOr<double> TraceLayers(
      absl::Span<const int32_t> tokens, const TraceOptions& options,
      const std::function<absl::Status(const LayerTrace&)>& observe) = 0;
};

// On the first CUDA device. Weights become `compute` numbers as they are read;
// `threads` decode them, attend to caches on the host, and outlive the model.
// Errors: Unimplemented in a program without CUDA,
// FailedPrecondition without a device, ResourceExhausted for weights that do
// not fit.
absl::StatusOr<std::unique_ptr<DeviceModel>> LoadCudaModel(
    const ModelConfig& config, const WeightSource& weights,
    const DeviceModelOptions& options, ThreadPool& threads);

// What LoadCudaModel calls; given once, by cuda_model.cc as it is linked.
using DeviceModelLoader = absl::StatusOr<std::unique_ptr<DeviceModel>> (*)(
    const ModelConfig&, const WeightSource&, const DeviceModelOptions&,
    ThreadPool&);
bool SetCudaModelLoader(DeviceModelLoader loader);

}  // namespace kvmix
