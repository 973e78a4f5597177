#include "models/cuda_host_sequences.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/attention.h"
#include "attention/kv_cache.h"
#include "kvmix/base/check.h"
#include "kvmix/base/half.h"
#include "kvmix/base/status_macros.h"
#include "models/cuda_weights.h"

namespace kvmix {
namespace {

// Rounded to the weights' type, as products take them.
void Round(const std::vector<float>& x, CudaNumber type, void* to) {
  if (type == CudaNumber::kFloat) {
    std::memcpy(to, x.data(), x.size() * sizeof(float));
    return;
  }
  KVMIX_CHECK(type == CudaNumber::kBFloat16);
  std::transform(x.begin(), x.end(), static_cast<BFloat16*>(to), ToBFloat16);
}

class HostSequences final : public CudaSequences {
 public:
  HostSequences(const CudaSequencesSetting& setting, const CachePlan& plan,
                std::shared_ptr<const RecencyPolicy> recency,
                const CudaCacheOptions& options, const std::string& why,
                HostWork& host)
      : setting_(setting),
        plan_(plan),
        recency_(std::move(recency)),
        options_(options),
        why_(why),
        q_size_(int64_t{setting.num_heads} * setting.shape.head_dim),
        kv_size_(int64_t{setting.shape.num_kv_heads} * setting.shape.head_dim),
        host_(host) {}

  absl::Status MakeCaches() {
    for (int i = 0; i < options_.num_sequences; ++i) {
      KVMIX_ASSIGN_OR_RETURN(caches_.emplace_back(), NewCache());
    }
    unfinished_.assign(caches_.size(), false);
    return absl::OkStatus();
  }

  int num_sequences() const override { return options_.num_sequences; }
  int64_t num_tokens(int sequence) const override {
    return caches_.at(sequence)->num_tokens(0);
  }
  // The caches alone: rows that pass by are the model's activations.
  MemoryLedger ledger() const override {
    MemoryLedger sum;
    for (const auto& cache : caches_) sum += cache->ledger();
    return sum;
  }
  std::string AttentionKernels() const override {
    return absl::StrCat(
        "host: ",
        kvmix::AttentionKernels(*caches_[0], AttentionArithmetic::kFloat));
  }
  std::string WhyOnHost() const override { return why_; }
  void Reset(int sequence) override {
    absl::StatusOr<std::unique_ptr<KvCache>> cache = NewCache();
    KVMIX_CHECK(cache.ok()) << cache.status();  // made of the same before
    caches_.at(sequence) = *std::move(cache);
    unfinished_[sequence] = false;
  }

  absl::Status BeginChunk(absl::Span<const SequenceChunk> chunk,
                          cudaStream_t stream) override;
  absl::Status RunLayer(int layer, const float* qkv, void* attended,
                        cudaStream_t stream) override;
  absl::Status EndChunk(cudaStream_t) override;
  absl::Status CheckNumbers(cudaStream_t stream) override {
    return CudaStatus(cudaStreamSynchronize(stream), "forward pass");
  }
  std::optional<uint64_t> LaunchKey() const override { return std::nullopt; }

 private:
  absl::StatusOr<std::unique_ptr<KvCache>> NewCache() const {
    return KvCache::Create(setting_.shape, plan_, recency_, options_.eviction);
  }
  int64_t FloatsFromDevice() const {
    return num_rows_ * (q_size_ + 2 * kv_size_);
  }
  absl::Status Download(const float* qkv, cudaStream_t stream);
  absl::Status Upload(void* attended, cudaStream_t stream);
  absl::Status FinishLayer(int layer);

  const CudaSequencesSetting setting_;
  const CachePlan plan_;
  const std::shared_ptr<const RecencyPolicy> recency_;
  const CudaCacheOptions options_;
  const std::string why_;
  const int64_t q_size_;   // H D
  const int64_t kv_size_;  // G D
  HostWork& host_;
  std::vector<std::unique_ptr<KvCache>> caches_;  // [sequences]
  // Of each sequence: a chunk has begun and not ended.
  std::vector<bool> unfinished_;
  // That passes, and where its parts lie.
  std::vector<SequenceChunk> chunk_;
  std::vector<AttentionItem> items_;
  int64_t num_rows_ = 0;
};

absl::Status HostSequences::BeginChunk(absl::Span<const SequenceChunk> chunk,
                                       cudaStream_t) {
  std::vector<int64_t> tokens;
  for (int i = 0; i < num_sequences(); ++i) tokens.push_back(num_tokens(i));
  KVMIX_RETURN_IF_ERROR(CheckChunk(options_, tokens, chunk));
  for (const SequenceChunk& part : chunk) {
    if (unfinished_[part.sequence])
      return absl::FailedPreconditionError(
          absl::StrCat("sequence ", part.sequence,
                       ": a pass over it failed; start it again with Reset"));
  }
  num_rows_ = 0;
  for (const SequenceChunk& part : chunk) num_rows_ += part.num_tokens;
  KVMIX_RETURN_IF_ERROR(
      host_.staging.Reserve(FloatsFromDevice() * sizeof(float) +
                                num_rows_ * q_size_ * BytesOf(setting_.type),
                            "rows of attention on the host"));
  host_.queries.resize(num_rows_ * q_size_);
  host_.attended.resize(num_rows_ * q_size_);
  host_.keys.resize(num_rows_ * kv_size_);
  host_.values.resize(num_rows_ * kv_size_);
  chunk_.assign(chunk.begin(), chunk.end());
  items_.clear();
  int64_t row = 0;
  for (const SequenceChunk& part : chunk) {
    unfinished_[part.sequence] = true;
    items_.push_back({.cache = caches_[part.sequence].get(),
                      .num_tokens = part.num_tokens,
                      .queries = host_.queries.data() + row * q_size_,
                      .out = host_.attended.data() + row * q_size_});
    row += part.num_tokens;
  }
  return absl::OkStatus();
}

// Waits for the rows, and takes them apart.
absl::Status HostSequences::Download(const float* qkv, cudaStream_t stream) {
  const float* from = host_.staging.as<float>();
  KVMIX_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpyAsync(host_.staging.as<float>(), qkv,
                                 FloatsFromDevice() * sizeof(float),
                                 cudaMemcpyDeviceToHost, stream),
                 "copy of queries, keys and values"));
  KVMIX_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream),
                                   "what precedes attention on the host"));
  for (int64_t r = 0; r < num_rows_; ++r) {
    std::copy_n(from, q_size_, host_.queries.data() + r * q_size_);
    std::copy_n(from + q_size_, kv_size_, host_.keys.data() + r * kv_size_);
    std::copy_n(from + q_size_ + kv_size_, kv_size_,
                host_.values.data() + r * kv_size_);
    from += q_size_ + 2 * kv_size_;
  }
  return absl::OkStatus();
}

// The next download waits for it, so that the memory is free again by then.
absl::Status HostSequences::Upload(void* attended, cudaStream_t stream) {
  float* const staged = host_.staging.as<float>() + FloatsFromDevice();
  Round(host_.attended, setting_.type, staged);
  return CudaStatus(
      cudaMemcpyAsync(attended, staged,
                      num_rows_ * q_size_ * BytesOf(setting_.type),
                      cudaMemcpyHostToDevice, stream),
      "copy of what was attended");
}

absl::Status HostSequences::RunLayer(int layer, const float* qkv,
                                     void* attended, cudaStream_t stream) {
  if (layer > 0) KVMIX_RETURN_IF_ERROR(FinishLayer(layer - 1));
  KVMIX_RETURN_IF_ERROR(Download(qkv, stream));
  int64_t row = 0;
  for (const SequenceChunk& part : chunk_) {
    KVMIX_RETURN_IF_ERROR(caches_[part.sequence]->Append(
        layer, part.num_tokens, host_.keys.data() + row * kv_size_,
        host_.values.data() + row * kv_size_));
    row += part.num_tokens;
  }
  Attention(layer, items_,
            {.num_heads = setting_.num_heads,
             .scale = setting_.attention.scale,
             .sliding_window = setting_.attention.sliding_window},
            host_.threads);
  return Upload(attended, stream);
}

// The queries are still those of `layer`.
absl::Status HostSequences::FinishLayer(int layer) {
  for (size_t i = 0; i < chunk_.size(); ++i) {
    KvCache& cache = *caches_[chunk_[i].sequence];
    KVMIX_RETURN_IF_ERROR(cache.Observe(layer, items_[i].queries,
                                        setting_.num_heads,
                                        setting_.attention.scale));
    KVMIX_RETURN_IF_ERROR(cache.FinishChunk(layer));
  }
  return absl::OkStatus();
}

absl::Status HostSequences::EndChunk(cudaStream_t) {
  KVMIX_RETURN_IF_ERROR(FinishLayer(setting_.shape.num_layers - 1));
  for (const SequenceChunk& part : chunk_) unfinished_[part.sequence] = false;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaSequences>> NewHostSequences(
    const CudaSequencesSetting& setting, const CachePlan& plan,
    std::shared_ptr<const RecencyPolicy> recency,
    const CudaCacheOptions& options, const std::string& why, HostWork& host) {
  auto sequences = std::make_unique<HostSequences>(
      setting, plan, std::move(recency), options, why, host);
  KVMIX_RETURN_IF_ERROR(sequences->MakeCaches());
  return sequences;
}

}  // namespace kvmix
