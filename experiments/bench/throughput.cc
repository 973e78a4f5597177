#include "experiments/bench/throughput.h"

#include <malloc.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/attention.h"
#include "experiments/bench/bench_methods.h"
#include "experiments/bench/random_states.h"
#include "experiments/loaded_model.h"
#include "experiments/machine.h"
#include "experiments/method_caches.h"
#include "kvmix/base/progress_bar.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"

namespace kvmix {
namespace {

// Of prompts in one pass: enough to keep matrix products busy.
constexpr int64_t kPassTokens = 8192;
constexpr int64_t kMostSequences = 1 << 16;

int64_t PromptsInAPass(int64_t batch, int64_t prompt_tokens) {
  return std::min(batch, std::max<int64_t>(1, kPassTokens / prompt_tokens));
}

// The caches of one batch.
class Batch {
 public:
  virtual ~Batch() = default;
  virtual absl::Status Forward(absl::Span<const DeviceChunk> chunks,
                               const LogitsConsumer& consume) = 0;
  virtual int64_t cache_bytes() const = 0;
  virtual std::string kernels() const = 0;
  // The caches lie in host memory, and the CPU attends to them.
  virtual bool on_host() const = 0;
};

struct BytesInUse {
  int64_t host = 0;    // as the operating system says, of the process
  int64_t device = 0;  // as the driver says, without the memory of passes
};

BytesInUse HostBytesInUse() {
  malloc_trim(0);  // what was freed must not count
  return {.host = ResidentBytes()};
}

// A model and the memory that it runs in.
class Server {
 public:
  virtual ~Server() = default;
  virtual const ModelConfig& config() const = 0;
  virtual int64_t weight_bytes() const = 0;
  virtual int threads() const = 0;  // of the CPU
  virtual absl::StatusOr<BytesInUse> InUse() const = 0;
  // Of caches on the host of a model that is elsewhere: the reason.
  virtual absl::StatusOr<std::string> WhyOnHost(
      const RunnableMethod& method) = 0;
  virtual absl::StatusOr<std::unique_ptr<Batch>> NewBatch(
      const RunnableMethod& method, int64_t batch) = 0;
  virtual absl::StatusOr<int64_t> LargestBatch(
      const RunnableMethod& method) = 0;
};

absl::Status FitsLimit(int64_t weights, int64_t caches, int64_t limit) {
  if (limit == 0 || weights + caches <= limit) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "weights of ", weights, " bytes and caches of ", caches,
      " bytes do not fit --memory_limit, ", limit,
      " bytes; use fewer or shorter sequences, or a plan of fewer bits"));
}

// ---- The CPU ----

class CpuBatch final : public Batch {
 public:
  CpuBatch(Transformer& model, AttentionArithmetic arithmetic)
      : model_(model), arithmetic_(arithmetic) {}
  std::vector<std::unique_ptr<KvCache>> caches;

  absl::Status Forward(absl::Span<const DeviceChunk> chunks,
                       const LogitsConsumer& consume) override {
    std::vector<Chunk> batch;
    for (const DeviceChunk& chunk : chunks) {
      batch.push_back(
          {chunk.tokens, caches[chunk.sequence].get(), chunk.logits});
    }
    return model_.Forward(batch, consume);
  }
  int64_t cache_bytes() const override {
    int64_t bytes = 0;
    for (const auto& cache : caches) bytes += cache->ledger().total();
    return bytes;
  }
  std::string kernels() const override {
    return AttentionKernels(*caches[0], arithmetic_);
  }
  bool on_host() const override { return true; }

 private:
  Transformer& model_;
  const AttentionArithmetic arithmetic_;
};

class CpuServer final : public Server {
 public:
  CpuServer(std::unique_ptr<Transformer> model, const BenchOptions& options)
      : model_(std::move(model)), options_(options) {}

  const ModelConfig& config() const override { return model_->config(); }
  int64_t weight_bytes() const override { return model_->weight_bytes(); }
  int threads() const override { return model_->threads().num_threads(); }
  absl::StatusOr<BytesInUse> InUse() const override { return HostBytesInUse(); }
  absl::StatusOr<std::string> WhyOnHost(const RunnableMethod&) override {
    return "";
  }
  absl::StatusOr<std::unique_ptr<Batch>> NewBatch(const RunnableMethod& method,
                                                  int64_t batch) override {
    if (options_.memory_limit > 0) {
      KVMIX_ASSIGN_OR_RETURN(const int64_t bytes, SequenceBytes(method));
      KVMIX_RETURN_IF_ERROR(
          FitsLimit(weight_bytes(), batch * bytes, options_.memory_limit));
    }
    auto caches = std::make_unique<CpuBatch>(
        *model_, ArithmeticOf(options_.model.attention_arithmetic()));
    for (int64_t i = 0; i < batch; ++i) {
      KVMIX_ASSIGN_OR_RETURN(caches->caches.emplace_back(),
                             MakeCache(*model_, method));
    }
    return caches;
  }
  absl::StatusOr<int64_t> LargestBatch(const RunnableMethod& method) override {
    KVMIX_ASSIGN_OR_RETURN(const int64_t bytes, SequenceBytes(method));
    KVMIX_RETURN_IF_ERROR(
        FitsLimit(weight_bytes(), bytes, options_.memory_limit));
    return std::min((options_.memory_limit - weight_bytes()) / bytes,
                    kMostSequences);
  }

 private:
  // Of a sequence that has generated all its tokens.
  absl::StatusOr<int64_t> SequenceBytes(const RunnableMethod& method) const {
    KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<KvCache> cache,
                           MakeCache(*model_, method));
    KVMIX_RETURN_IF_ERROR(
        RandomStates(model_->cache_shape(), kBenchSeed)
            .Append(options_.prompt_tokens + options_.decode_tokens - 1, 0,
                    *cache));
    return cache->ledger().total();
  }

  const std::unique_ptr<Transformer> model_;
  const BenchOptions& options_;
};

// ---- A device ----

class DeviceBatch final : public Batch {
 public:
  DeviceBatch(DeviceModel& model, std::unique_ptr<DeviceSequences> sequences)
      : model_(model), sequences_(std::move(sequences)) {}
  absl::Status Forward(absl::Span<const DeviceChunk> chunks,
                       const LogitsConsumer& consume) override {
    return model_.Forward(*sequences_, chunks, consume);
  }
  int64_t cache_bytes() const override { return sequences_->ledger().total(); }
  std::string kernels() const override {
    return sequences_->AttentionKernels();
  }
  bool on_host() const override { return !sequences_->WhyOnHost().empty(); }

 private:
  DeviceModel& model_;
  const std::unique_ptr<DeviceSequences> sequences_;
};

absl::Status IgnoreLogits(int, int64_t, int64_t, const float*) {
  return absl::OkStatus();
}

class DeviceServer final : public Server {
 public:
  DeviceServer(std::unique_ptr<ThreadPool> threads,
               std::unique_ptr<DeviceModel> model, const BenchOptions& options)
      : threads_(std::move(threads)),
        model_(std::move(model)),
        options_(options) {}

  const ModelConfig& config() const override { return model_->config(); }
  int64_t weight_bytes() const override { return model_->weight_bytes(); }
  int threads() const override { return threads_->num_threads(); }
  absl::StatusOr<BytesInUse> InUse() const override {
    KVMIX_ASSIGN_OR_RETURN(const DeviceMemoryUse use, model_->MemoryUse());
    BytesInUse in_use = HostBytesInUse();
    in_use.device = use.in_use - use.passes;
    return in_use;
  }
  absl::StatusOr<std::string> WhyOnHost(const RunnableMethod& method) override {
    KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<DeviceSequences> sequences,
                           MakeSequences(*model_, method, {.max_tokens = 1}));
    return sequences->WhyOnHost();
  }
  absl::StatusOr<std::unique_ptr<Batch>> NewBatch(const RunnableMethod& method,
                                                  int64_t batch) override {
    const int64_t prompt = options_.prompt_tokens;
    KVMIX_ASSIGN_OR_RETURN(
        std::unique_ptr<DeviceSequences> sequences,
        MakeSequences(*model_, method,
                      {.num_sequences = static_cast<int>(batch),
                       .max_tokens = prompt + options_.decode_tokens - 1,
                       .max_chunk_tokens = std::max(
                           batch, prompt * PromptsInAPass(batch, prompt))}));
    KVMIX_RETURN_IF_ERROR(FitsLimit(weight_bytes(), sequences->ledger().total(),
                                    options_.memory_limit));
    return std::make_unique<DeviceBatch>(*model_, std::move(sequences));
  }
  absl::StatusOr<int64_t> LargestBatch(const RunnableMethod& method) override {
    int64_t fits = 0, too_many = kMostSequences + 1;
    for (int64_t batch = 1; too_many - fits > 1;) {
      const absl::Status tried = Try(method, batch);
      if (!tried.ok() && (!absl::IsResourceExhausted(tried) || batch == 1))
        return tried;
      (tried.ok() ? fits : too_many) = batch;
      batch = too_many > kMostSequences ? std::min(2 * fits, kMostSequences)
                                        : (fits + too_many) / 2;
    }
    return fits;
  }

 private:
  // Allocates, and runs a pass over prompts and a decode step.
  absl::Status Try(const RunnableMethod& method, int64_t batch) {
    KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<Batch> caches,
                           NewBatch(method, batch));
    const std::vector<int32_t> prompt(options_.prompt_tokens, 0);
    std::vector<DeviceChunk> chunks;
    for (int s = 0; s < PromptsInAPass(batch, options_.prompt_tokens); ++s)
      chunks.push_back({s, prompt, WantLogits::kLast});
    KVMIX_RETURN_IF_ERROR(caches->Forward(chunks, IgnoreLogits));
    chunks.clear();
    for (int s = 0; s < batch; ++s)
      chunks.push_back({s, {prompt.data(), 1}, WantLogits::kLast});
    return caches->Forward(chunks, IgnoreLogits);
  }

  const std::unique_ptr<ThreadPool> threads_;
  const std::unique_ptr<DeviceModel> model_;
  const BenchOptions& options_;
};

// ---- Both ----

absl::StatusOr<std::unique_ptr<Server>> LoadServer(
    const BenchOptions& options) {
  if (options.model.device() == ModelSource::CUDA) {
    auto threads =
        std::make_unique<ThreadPool>(static_cast<int>(options.threads[0]));
    if (options.pin_threads) KVMIX_RETURN_IF_ERROR(threads->Pin());
    KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<DeviceModel> model,
                           LoadBenchDevice(options, *threads));
    return std::make_unique<DeviceServer>(std::move(threads), std::move(model),
                                          options);
  }
  KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<Transformer> model,
                         LoadBenchTransformer(options, options.threads[0]));
  return std::make_unique<CpuServer>(std::move(model), options);
}

absl::Status ValidateBatches(const BenchOptions& options) {
  if (options.batches.empty())
    return absl::InvalidArgumentError("--batch is empty");
  for (const int64_t batch : options.batches) {
    if (batch != kLargestBatch) {
      KVMIX_RETURN_IF_ERROR(
          ValidateIsInRange<int64_t>(batch, 1, kMostSequences, "--batch"));
    } else if (options.model.device() == ModelSource::CPU &&
               options.memory_limit == 0) {
      return absl::InvalidArgumentError(
          "--batch=max on the CPU needs --memory_limit: what caches and "
          "weights may take together");
    }
  }
  return absl::OkStatus();
}

absl::Status Validate(const BenchOptions& options) {
  if (options.model.device() == ModelSource::CUDA &&
      options.model.attention_arithmetic() != AttentionConfig::FLOAT) {
    return absl::InvalidArgumentError(
        "--arithmetic is of the CPU's attention; with --device=cuda it must be "
        "float");
  }
  KVMIX_RETURN_IF_ERROR(ValidateBenchModel(options));
  if (options.methods.empty())
    return absl::InvalidArgumentError("--kv is empty");
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(options.prompt_tokens, 1, 1 << 20, "--prompt"));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(options.decode_tokens, 2, 1 << 20, "--generate"));
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(options.repeat, 1, 1000, "--repeat"));
  if (options.memory_limit < 0)
    return absl::InvalidArgumentError("--memory_limit is below 0");
  if (options.depths != std::vector<int64_t>{0}) {
    return absl::InvalidArgumentError(
        "--depth must be 0 with --throughput: caches hold the prompts");
  }
  if (options.threads.size() != 1) {
    return absl::InvalidArgumentError(
        "--threads must be one number with --throughput");
  }
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange<int64_t>(options.threads[0], 0, 1024, "--threads"));
  return ValidateBatches(options);
}

// A batch through its life.
class Serving {
 public:
  Serving(Batch& batch, const ModelConfig& config, int64_t size,
          const std::atomic<bool>* stop)
      : batch_(batch), config_(config), stop_(stop), next_(size) {}

  // Seconds of all prompts.
  absl::StatusOr<double> Prefill(absl::Span<const int32_t> prompt) {
    const int64_t size = static_cast<int64_t>(next_.size());
    const int64_t together =
        PromptsInAPass(size, static_cast<int64_t>(prompt.size()));
    const absl::Time start = absl::Now();
    for (int64_t first = 0; first < size; first += together) {
      std::vector<DeviceChunk> chunks;
      for (int64_t s = first; s < std::min(size, first + together); ++s)
        chunks.push_back({static_cast<int>(s), prompt, WantLogits::kLast});
      KVMIX_RETURN_IF_ERROR(Pass(chunks));
    }
    return absl::ToDoubleSeconds(absl::Now() - start);
  }

  absl::StatusOr<double> Decode(int64_t steps) {
    const absl::Time start = absl::Now();
    for (int64_t step = 0; step < steps; ++step) {
      const std::vector<int32_t> tokens = next_;
      std::vector<DeviceChunk> chunks;
      for (size_t s = 0; s < tokens.size(); ++s)
        chunks.push_back(
            {static_cast<int>(s), {&tokens[s], 1}, WantLogits::kLast});
      KVMIX_RETURN_IF_ERROR(Pass(chunks));
    }
    return absl::ToDoubleSeconds(absl::Now() - start);
  }

 private:
  absl::Status Pass(const std::vector<DeviceChunk>& chunks) {
    if (stop_ != nullptr && *stop_) return absl::CancelledError("interrupted");
    return batch_.Forward(
        chunks, [&](int chunk, int64_t, int64_t, const float* logits) {
          next_[chunks[chunk].sequence] = static_cast<int32_t>(
              std::max_element(logits, logits + config_.vocab_size) - logits);
          return absl::OkStatus();
        });
  }

  Batch& batch_;
  const ModelConfig& config_;
  const std::atomic<bool>* const stop_;
  std::vector<int32_t> next_;  // [batch]
};

// A row and what its repetitions gave.
struct Measured {
  const RunnableMethod* method = nullptr;
  BenchRow row;
  std::vector<double> prefill, decode, throughput;  // tokens per second
};

class Throughput {
 public:
  Throughput(const BenchOptions& options, const std::atomic<bool>* stop)
      : options_(options), stop_(stop) {}

  absl::StatusOr<BenchReport> Run() {
    KVMIX_RETURN_IF_ERROR(Validate(options_));
    KVMIX_ASSIGN_OR_RETURN(server_, LoadServer(options_));
    const ModelConfig& config = server_->config();
    if (options_.prompt_tokens + options_.decode_tokens > config.max_position) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--prompt ", options_.prompt_tokens, " and --generate ",
          options_.decode_tokens, " do not fit in the model's context of ",
          config.max_position));
    }
    prompt_ = RandomTokens(options_.prompt_tokens, 1, config.vocab_size);
    KVMIX_RETURN_IF_ERROR(MakeMethods());
    KVMIX_RETURN_IF_ERROR(MakeRows());
    ProgressBar bar("bench",
                    static_cast<int64_t>(options_.repeat * rows_.size()),
                    "measurements");
    for (int round = 0; round < options_.repeat; ++round) {
      for (Measured& measured : rows_) {
        KVMIX_RETURN_IF_ERROR(AddContext(
            Measure(measured),
            absl::StrCat(measured.row.method, ", batch ", measured.row.batch)));
        bar.Advance();
      }
    }
    return Report();
  }

 private:
  absl::Status MakeMethods() {
    const ModelConfig& config = server_->config();
    for (const std::string& name : options_.methods) {
      KVMIX_ASSIGN_OR_RETURN(
          RunnableMethod method,
          MakeBenchMethod(name, {.num_layers = config.num_layers,
                                 .num_kv_heads = config.num_kv_heads,
                                 .head_dim = config.head_dim}));
      KVMIX_ASSIGN_OR_RETURN(const std::string why, server_->WhyOnHost(method));
      TellIfOnHost(method.name, why);
      if (!why.empty())
        KVMIX_RETURN_IF_ERROR(CheckBatchesOnHost(method.name, why));
      methods_.push_back(std::move(method));
    }
    return absl::OkStatus();
  }

  absl::Status CheckBatchesOnHost(const std::string& method,
                                  const std::string& why) const {
    const auto& batches = options_.batches;
    if (options_.memory_limit == 0 && std::find(batches.begin(), batches.end(),
                                                kLargestBatch) == batches.end())
      return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        method,
        ": --batch=max and --memory_limit are of the device's memory, but this "
        "cache lies in the host's (",
        why, "); give --batch numbers alone, or use --device=cpu"));
  }

  absl::Status MakeRows() {
    for (int64_t batch : options_.batches) {
      for (const RunnableMethod& method : methods_) {
        Measured measured;
        measured.method = &method;
        measured.row.method = method.name;
        measured.row.batch = batch;
        if (batch == kLargestBatch) {
          absl::StatusOr<int64_t> largest = server_->LargestBatch(method);
          if (!largest.ok())
            return AddContext(largest.status(),
                              absl::StrCat(method.name, ", batch 1"));
          measured.row.batch = *largest;
        }
        rows_.push_back(std::move(measured));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Measure(Measured& measured) {
    BenchRow& row = measured.row;
    KVMIX_ASSIGN_OR_RETURN(const BytesInUse before, server_->InUse());
    KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<Batch> batch,
                           server_->NewBatch(*measured.method, row.batch));
    Serving serving(*batch, server_->config(), row.batch, stop_);
    KVMIX_ASSIGN_OR_RETURN(const double prefill, serving.Prefill(prompt_));
    const int64_t steps = options_.decode_tokens - 1;
    KVMIX_ASSIGN_OR_RETURN(const double decode, serving.Decode(steps));
    const double sequences = static_cast<double>(row.batch);
    measured.prefill.push_back(sequences * options_.prompt_tokens / prefill);
    measured.decode.push_back(sequences * static_cast<double>(steps) / decode);
    measured.throughput.push_back(sequences * options_.decode_tokens /
                                  (prefill + decode));
    row.cache_bytes = batch->cache_bytes();
    row.kernels = batch->kernels();
    row.threads = batch->on_host() ? server_->threads() : 0;
    KVMIX_ASSIGN_OR_RETURN(const BytesInUse after, server_->InUse());
    row.resident_bytes = batch->on_host() ? after.host - before.host
                                          : after.device - before.device;
    return absl::OkStatus();
  }

  BenchReport Report() {
    BenchReport report = DescribeBench(options_);
    report.weight_bytes = server_->weight_bytes();
    for (Measured& measured : rows_) {
      measured.row.prefill = SpreadOf(measured.prefill);
      measured.row.decode = SpreadOf(measured.decode);
      measured.row.throughput = SpreadOf(measured.throughput);
      report.rows.push_back(measured.row);
    }
    return report;
  }

  const BenchOptions& options_;
  const std::atomic<bool>* const stop_;
  std::unique_ptr<Server> server_;
  std::vector<RunnableMethod> methods_;
  std::vector<int32_t> prompt_;
  std::vector<Measured> rows_;
};

}  // namespace

absl::StatusOr<BenchReport> RunThroughput(const BenchOptions& options,
                                          const std::atomic<bool>* stop) {
  return Throughput(options, stop).Run();
}

}  // namespace kvmix
