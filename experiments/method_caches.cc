#include "experiments/method_caches.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "experiments/metrics.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

// All methods in one batched pass.
class CpuCaches final : public MethodCaches {
 public:
  static absl::StatusOr<std::unique_ptr<CpuCaches>> Make(
      Transformer& model, absl::Span<const RunnableMethod> methods) {
    auto caches = std::unique_ptr<CpuCaches>(new CpuCaches(model));
    for (const RunnableMethod& method : methods) {
      KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<KvCache> cache,
                             MakeCache(model, method));
      caches->caches_.push_back(std::move(cache));
    }
    return caches;
  }
  absl::Status Forward(absl::Span<const int32_t> tokens, WantLogits logits,
                       const LogitsConsumer& consume) override {
    std::vector<Chunk> batch;
    for (const auto& cache : caches_)
      batch.push_back({tokens, cache.get(), logits});
    return model_.Forward(batch, consume);
  }
  // Of one method alone.
  absl::Status ForwardMethod(int method, absl::Span<const int32_t> tokens,
                             WantLogits logits, const LogitsConsumer& consume) {
    return model_.Forward({Chunk{.tokens = tokens,
                                 .cache = caches_[method].get(),
                                 .logits = logits}},
                          consume);
  }
  MemoryLedger ledger(int method) const override {
    return caches_[method]->ledger();
  }

 private:
  explicit CpuCaches(Transformer& model) : model_(model) {}
  Transformer& model_;
  std::vector<std::unique_ptr<KvCache>> caches_;
};

// One method after the other: sequences of one pass share a plan.
class DeviceCaches final : public MethodCaches {
 public:
  static absl::StatusOr<std::unique_ptr<DeviceCaches>> Make(
      DeviceModel& model, absl::Span<const RunnableMethod> methods,
      const CacheRoom& room) {
    auto caches = std::unique_ptr<DeviceCaches>(new DeviceCaches(model));
    for (const RunnableMethod& method : methods) {
      KVMIX_ASSIGN_OR_RETURN(
          std::unique_ptr<DeviceSequences> sequences,
          MakeSequences(model, method,
                        {.num_sequences = 1,
                         .max_tokens = room.max_tokens,
                         .max_chunk_tokens = room.max_chunk_tokens}));
      caches->sequences_.push_back(std::move(sequences));
    }
    return caches;
  }
  absl::Status Forward(absl::Span<const int32_t> tokens, WantLogits logits,
                       const LogitsConsumer& consume) override {
    for (int m = 0; m < static_cast<int>(sequences_.size()); ++m)
      KVMIX_RETURN_IF_ERROR(ForwardMethod(m, tokens, logits, consume));
    return absl::OkStatus();
  }
  absl::Status ForwardMethod(int method, absl::Span<const int32_t> tokens,
                             WantLogits logits, const LogitsConsumer& consume) {
    return model_.Forward(
        *sequences_[method],
        {DeviceChunk{.sequence = 0, .tokens = tokens, .logits = logits}},
        [&](int, int64_t first, int64_t rows, const float* x) {
          return consume(method, first, rows, x);
        });
  }
  MemoryLedger ledger(int method) const override {
    return sequences_[method]->ledger();
  }

 private:
  explicit DeviceCaches(DeviceModel& model) : model_(model) {}
  DeviceModel& model_;
  std::vector<std::unique_ptr<DeviceSequences>> sequences_;
};

// Every chunk on the CPU, then on the device, whose logits are shown.
class CheckedCaches final : public MethodCaches {
 public:
  CheckedCaches(std::vector<std::string> names, int64_t vocab_size,
                std::unique_ptr<CpuCaches> cpu,
                std::unique_ptr<DeviceCaches> device)
      : names_(std::move(names)),
        vocab_size_(vocab_size),
        cpu_(std::move(cpu)),
        device_(std::move(device)),
        compared_(names_.size()) {}

  absl::Status Forward(absl::Span<const int32_t> tokens, WantLogits logits,
                       const LogitsConsumer& consume) override {
    for (int m = 0; m < static_cast<int>(names_.size()); ++m)
      KVMIX_RETURN_IF_ERROR(ForwardMethod(m, tokens, logits, consume));
    num_tokens_ += static_cast<int64_t>(tokens.size());
    return absl::OkStatus();
  }
  MemoryLedger ledger(int method) const override {
    return device_->ledger(method);
  }

 private:
  absl::Status ForwardMethod(int method, absl::Span<const int32_t> tokens,
                             WantLogits logits, const LogitsConsumer& consume) {
    const int64_t count = static_cast<int64_t>(tokens.size());
    expected_.resize(count * vocab_size_);
    KVMIX_RETURN_IF_ERROR(cpu_->ForwardMethod(
        method, tokens, logits,
        [&](int, int64_t first, int64_t rows, const float* x) {
          std::copy_n(x, rows * vocab_size_,
                      expected_.data() + first * vocab_size_);
          return absl::OkStatus();
        }));
    double sum = 0, compared = 0;
    KVMIX_RETURN_IF_ERROR(device_->ForwardMethod(
        method, tokens, logits,
        [&](int, int64_t first, int64_t rows, const float* x) {
          for (int64_t r = 0; r < rows; ++r) {
            sum += KlDivergence(
                ReduceLogits(expected_.data() + (first + r) * vocab_size_,
                             vocab_size_),
                ReduceLogits(x + r * vocab_size_, vocab_size_), vocab_size_);
          }
          compared += static_cast<double>(rows);
          return consume(method, first, rows, x);
        }));
    if (compared == 0) return absl::OkStatus();
    Compared& before = compared_[method];
    const double kept =
        std::clamp(kComparedTokens - compared, 0.0, before.tokens);
    if (kept > 0) sum += kept * before.mean;
    compared += kept;
    before = {.mean = sum / compared, .tokens = compared};
    // So written that NaN is a disagreement, too.
    if (sum / compared <= kMaxDisagreement) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat(
        "check_against CPU: method ", names_[method], ", tokens ", num_tokens_,
        " to ", num_tokens_ + count,
        ": logits on the device differ from the CPU's by a mean KL divergence "
        "of ",
        sum / compared, " nats over the last ", std::round(compared),
        " tokens compared; at most ", kMaxDisagreement,
        " comes from rounding"));
  }

  // KL divergences of a method's last tokens: their mean.
  struct Compared {
    double mean = 0, tokens = 0;
  };

  const std::vector<std::string> names_;
  const int64_t vocab_size_;
  const std::unique_ptr<CpuCaches> cpu_;
  const std::unique_ptr<DeviceCaches> device_;
  std::vector<Compared> compared_;
  int64_t num_tokens_ = 0;
  std::vector<float> expected_;  // [tokens of the chunk, vocab]
};

}  // namespace

absl::StatusOr<std::unique_ptr<KvCache>> MakeCache(
    const Transformer& model, const RunnableMethod& method) {
  absl::StatusOr<std::unique_ptr<KvCache>> cache = KvCache::Create(
      model.cache_shape(), method.plan, method.recency, method.eviction);
  if (cache.ok()) return cache;
  return AddContext(cache.status(), absl::StrCat("method ", method.name));
}

absl::StatusOr<std::unique_ptr<DeviceSequences>> MakeSequences(
    DeviceModel& model, const RunnableMethod& method,
    const SequencesOptions& room) {
  SequencesOptions options = room;
  options.eviction = method.eviction;
  absl::StatusOr<std::unique_ptr<DeviceSequences>> sequences =
      model.NewSequences(method.plan, method.recency, options);
  if (sequences.ok()) return sequences;
  return AddContext(sequences.status(), absl::StrCat("method ", method.name));
}

void TellIfOnHost(const std::string& method, const std::string& why_on_host) {
  if (why_on_host.empty()) return;
  std::cerr << absl::StrCat(
      "method ", method,
      ": its cache lies in host memory, and the CPU attends to it: ",
      why_on_host, "\n");
}

absl::StatusOr<std::unique_ptr<MethodCaches>> MakeMethodCaches(
    const WhereToRun& where, absl::Span<const RunnableMethod> methods,
    const CacheRoom& room) {
  if (where.device == nullptr) return CpuCaches::Make(*where.cpu, methods);
  KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<DeviceCaches> device,
                         DeviceCaches::Make(*where.device, methods, room));
  if (!where.check_against_cpu) return device;
  KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<CpuCaches> cpu,
                         CpuCaches::Make(*where.cpu, methods));
  std::vector<std::string> names;
  for (const RunnableMethod& method : methods) names.push_back(method.name);
  return std::make_unique<CheckedCaches>(std::move(names),
                                         where.cpu->config().vocab_size,
                                         std::move(cpu), std::move(device));
}

}  // namespace kvmix
