#include "models/cuda_sequences.h"

#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_join.h"
#include "kvmix/base/check.h"
#include "kvmix/base/status_macros.h"
#include "models/cuda_host_sequences.h"

namespace kvmix {
namespace {

// Packed on the device; every call of a layer is a launch of kernels.
class PackedSequences final : public CudaSequences {
 public:
  PackedSequences(std::unique_ptr<CudaKvCache> cache,
                  const CudaSequencesSetting& setting)
      : cache_(std::move(cache)),
        attention_(setting.attention),
        type_(setting.type),
        q_size_(int64_t{setting.num_heads} * setting.shape.head_dim),
        kv_size_(int64_t{setting.shape.num_kv_heads} * setting.shape.head_dim) {
  }

  int num_sequences() const override { return cache_->options().num_sequences; }
  int64_t num_tokens(int sequence) const override {
    return cache_->num_tokens(sequence);
  }
  MemoryLedger ledger() const override { return cache_->ledger(); }
  std::string AttentionKernels() const override {
    std::set<std::string> names;
    for (int i = 0; i < cache_->shape().num_layers; ++i)
      names.insert(cache_->DecodeKernelName(i));
    return absl::StrJoin(names, " + ");
  }
  std::string WhyOnHost() const override { return ""; }
  void Reset(int sequence) override { cache_->Reset(sequence); }

  absl::Status BeginChunk(absl::Span<const SequenceChunk> chunk,
                          cudaStream_t stream) override {
    return cache_->BeginChunk(chunk, stream);
  }
  absl::Status RunLayer(int layer, const float* qkv, void* attended,
                        cudaStream_t stream) override {
    const auto rows_at = [&](int64_t offset) {
      return CudaRows{qkv + offset, CudaNumber::kFloat, q_size_ + 2 * kv_size_};
    };
    KVMIX_RETURN_IF_ERROR(cache_->Append(layer, rows_at(q_size_),
                                         rows_at(q_size_ + kv_size_), stream));
    KVMIX_RETURN_IF_ERROR(cache_->Attention(
        layer, rows_at(0), CudaMutableRows{attended, type_, q_size_},
        attention_, stream));
    KVMIX_RETURN_IF_ERROR(
        cache_->Observe(layer, rows_at(0), attention_.scale, stream));
    return cache_->FinishChunk(layer, stream);
  }
  absl::Status EndChunk(cudaStream_t stream) override {
    return cache_->EndChunk(stream);
  }
  absl::Status CheckNumbers(cudaStream_t stream) override {
    return cache_->CheckNumbers(stream);
  }
  std::optional<uint64_t> LaunchKey() const override {
    return cache_->launch_key();
  }

 private:
  const std::unique_ptr<CudaKvCache> cache_;
  const CudaAttentionOptions attention_;
  const CudaNumber type_;
  const int64_t q_size_;   // H D
  const int64_t kv_size_;  // G D
};

}  // namespace

absl::StatusOr<std::unique_ptr<CudaSequences>> NewCudaSequences(
    const CudaSequencesSetting& setting, const CachePlan& plan,
    std::shared_ptr<const RecencyPolicy> recency,
    const SequencesOptions& options, HostWork& host) {
  KVMIX_CHECK(recency != nullptr && options.eviction != nullptr);
  const CudaCacheOptions cache_options = {
      .num_sequences = options.num_sequences,
      .max_tokens = options.max_tokens,
      .max_chunk_tokens = options.max_chunk_tokens,
      .num_heads = setting.num_heads,
      .eviction = options.eviction};
  absl::StatusOr<std::unique_ptr<CudaKvCache>> cache =
      CudaKvCache::Create(setting.shape, plan, recency, cache_options);
  if (cache.ok())
    return std::make_unique<PackedSequences>(*std::move(cache), setting);
  if (!absl::IsUnimplemented(cache.status())) return cache.status();
  return NewHostSequences(setting, plan, std::move(recency), cache_options,
                          std::string(cache.status().message()), host);
}

}  // namespace kvmix
