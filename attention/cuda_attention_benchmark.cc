#include "attention/cuda_attention_benchmark.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "attention/cuda_kv_cache.h"
#include "kvmix/base/device_memory.h"
#include "kvmix/base/random.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

constexpr int64_t kFillTokens = 512;  // of a sequence, appended at a time

// Packs whatever it can.
class PackAll final : public RecencyPolicy {
 public:
  FlushOrder flush_order() const override {
    return FlushOrder::kBeforeAttention;
  }
  absl::Status Validate(const WindowState&) const override {
    return absl::OkStatus();
  }
  int64_t TokensToQuantize(const WindowState& state) const override {
    return state.window_tokens / state.granularity * state.granularity;
  }
};

struct Formats {
  std::string name;
  QuantFormat key, value;
};

QuantFormat Format(int bits, QuantFormat::Axis axis) {
  QuantFormat format;
  format.set_bits(bits);
  if (bits == 16) return format;
  format.set_quantizer("group_affine");
  format.set_axis(axis);
  format.set_group_size(32);
  return format;
}

Formats Bits(int key, int value) {
  return {"K" + std::to_string(key) + " V" + std::to_string(value),
          Format(key, QuantFormat::PER_CHANNEL),
          Format(value, QuantFormat::PER_TOKEN)};
}

Formats ElevenWords() {
  Formats formats = Bits(3, 4);
  formats.name = "K3 in words of 11, V4";
  formats.key.set_group_size(11);
  formats.key.set_packing(QuantFormat::KVMIX_3BIT_11);
  return formats;
}

std::vector<Formats> AllFormats() {
  return {Bits(16, 16), Bits(8, 8), Bits(4, 4),   Bits(3, 3),
          Bits(2, 2),   Bits(2, 4), ElevenWords()};
}

class Timer {
 public:
  absl::Status Init() {
    KVMIX_RETURN_IF_ERROR(
        CudaStatus(cudaEventCreate(&start_), "create an event"));
    return CudaStatus(cudaEventCreate(&stop_), "create an event");
  }
  ~Timer() {
    if (start_ != nullptr) cudaEventDestroy(start_);
    if (stop_ != nullptr) cudaEventDestroy(stop_);
  }
  // Median seconds of `work`, after one call that is not counted.
  absl::StatusOr<double> Median(int repetitions,
                                const std::function<absl::Status()>& work) {
    std::vector<float> times;
    KVMIX_RETURN_IF_ERROR(work());
    for (int i = 0; i < repetitions; ++i) {
      KVMIX_RETURN_IF_ERROR(
          CudaStatus(cudaEventRecord(start_, nullptr), "start a timer"));
      KVMIX_RETURN_IF_ERROR(work());
      KVMIX_RETURN_IF_ERROR(
          CudaStatus(cudaEventRecord(stop_, nullptr), "stop a timer"));
      KVMIX_RETURN_IF_ERROR(
          CudaStatus(cudaEventSynchronize(stop_), "wait for a timer"));
      float ms = 0;
      KVMIX_RETURN_IF_ERROR(
          CudaStatus(cudaEventElapsedTime(&ms, start_, stop_), "read a timer"));
      times.push_back(ms);
    }
    std::nth_element(times.begin(), times.begin() + repetitions / 2,
                     times.end());
    return std::max(times[repetitions / 2], 1e-6f) * 1e-3;
  }

 private:
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
};

// Bytes a second, read and written ones together.
absl::StatusOr<double> CopySpeed(const CudaBenchmarkOptions& options,
                                 Timer& timer) {
  KVMIX_ASSIGN_OR_RETURN(DeviceMemory from,
                         DeviceMemory::Allocate(options.copy_bytes, "a copy"));
  KVMIX_ASSIGN_OR_RETURN(DeviceMemory to,
                         DeviceMemory::Allocate(options.copy_bytes, "a copy"));
  KVMIX_RETURN_IF_ERROR(CudaStatus(
      cudaMemset(from.data(), 1, static_cast<size_t>(options.copy_bytes)),
      "fill a copy's source"));
  KVMIX_ASSIGN_OR_RETURN(
      const double seconds, timer.Median(options.repetitions, [&] {
        return CudaStatus(
            cudaMemcpyAsync(to.data(), from.data(),
                            static_cast<size_t>(options.copy_bytes),
                            cudaMemcpyDeviceToDevice, nullptr),
            "copy");
      }));
  return 2 * static_cast<double>(options.copy_bytes) / seconds;
}

// A batch of sequences, filled with random numbers up to `depth`.
class Batch {
 public:
  static absl::StatusOr<std::unique_ptr<Batch>> Create(
      const CudaBenchmarkOptions& options, const Formats& formats, int group,
      int64_t depth, int64_t queries) {
    auto batch = std::make_unique<Batch>();
    const int64_t head_bytes = int64_t{options.head_dim} *
                               (formats.key.bits() + formats.value.bits()) / 8;
    batch->size_ =
        queries > 1
            ? 1
            : static_cast<int>(std::clamp<int64_t>(
                  options.batch_bytes / (depth * options.kv_heads * head_bytes),
                  1, options.max_batch));
    batch->width_ = int64_t{options.kv_heads} * options.head_dim;
    batch->queries_ = queries;
    batch->group_ = group;
    CachePlan plan;
    *plan.add_layer()->mutable_key() = formats.key;
    *plan.mutable_layer(0)->mutable_value() = formats.value;
    const int64_t chunk = std::max(
        {batch->size_ * std::min(kFillTokens, depth), batch->size_ * queries});
    KVMIX_ASSIGN_OR_RETURN(
        batch->cache_,
        CudaKvCache::Create({.num_layers = 1,
                             .num_kv_heads = options.kv_heads,
                             .head_dim = options.head_dim},
                            plan, std::make_shared<PackAll>(),
                            {.num_sequences = batch->size_,
                             .max_tokens = depth,
                             .max_chunk_tokens = chunk,
                             .num_heads = options.kv_heads * group}));
    std::vector<float> numbers(std::max(chunk, batch->size_ * queries * group) *
                               batch->width_);
    CounterRandom random(1, 2);
    for (size_t i = 0; i < numbers.size(); ++i)
      numbers[i] = i < (1 << 16)
                       ? static_cast<float>(random.Normal())
                       : numbers[i % (1 << 16)];  // enough for a benchmark
    const auto bytes = static_cast<int64_t>(numbers.size() * sizeof(float));
    KVMIX_ASSIGN_OR_RETURN(batch->numbers_,
                           DeviceMemory::Allocate(bytes, "keys and values"));
    KVMIX_ASSIGN_OR_RETURN(batch->out_,
                           DeviceMemory::Allocate(bytes, "attention's output"));
    KVMIX_RETURN_IF_ERROR(batch->numbers_.Upload(numbers.data(), bytes));
    for (int64_t at = 0; at < depth - queries;) {
      const int64_t n = std::min(kFillTokens, depth - queries - at);
      KVMIX_RETURN_IF_ERROR(batch->Append(n));
      KVMIX_RETURN_IF_ERROR(batch->cache_->FinishChunk(0, nullptr));
      at += n;
    }
    KVMIX_RETURN_IF_ERROR(batch->Append(queries));
    return batch;
  }

  int size() const { return size_; }
  const CudaKvCache& cache() const { return *cache_; }
  // What attention reads once.
  double Bytes() const {
    const MemoryLedger ledger = cache_->ledger();
    double bytes = 0;
    for (const LedgerSide* side : {&ledger.key, &ledger.value})
      bytes += static_cast<double>(side->bytes() - side->slack);
    return bytes;
  }
  absl::Status Attend() {
    const int64_t stride = width_ * group_;
    return cache_->Attention(
        0, {numbers_.data(), CudaNumber::kFloat, stride},
        {out_.data(), CudaNumber::kFloat, stride},
        {.scale = 1 / std::sqrt(static_cast<float>(cache_->shape().head_dim))},
        nullptr);
  }

 private:
  absl::Status Append(int64_t tokens) {
    std::vector<SequenceChunk> chunk;
    for (int i = 0; i < size_; ++i) chunk.push_back({i, tokens});
    KVMIX_RETURN_IF_ERROR(cache_->BeginChunk(chunk, nullptr));
    const CudaRows rows{numbers_.data(), CudaNumber::kFloat, width_};
    return cache_->Append(0, rows, rows, nullptr);
  }

  std::unique_ptr<CudaKvCache> cache_;
  DeviceMemory numbers_, out_;
  int size_ = 0, group_ = 0;
  int64_t width_ = 0, queries_ = 0;
};

std::string Line(const char* format, auto... values) {
  char line[256];
  std::snprintf(line, sizeof(line), format, values...);
  return line;
}

absl::Status DecodeTable(const CudaBenchmarkOptions& options, double copy,
                         Timer& timer, std::ostream& out) {
  out << "\n| cache | G | tokens | batch | us | GB/s | share of the copy | "
         "kernel |\n|---|---|---|---|---|---|---|---|\n";
  for (const Formats& formats : AllFormats())
    for (const int group : options.groups)
      for (const int64_t depth : options.depths) {
        KVMIX_ASSIGN_OR_RETURN(
            const std::unique_ptr<Batch> batch,
            Batch::Create(options, formats, group, depth, 1));
        KVMIX_ASSIGN_OR_RETURN(
            const double seconds,
            timer.Median(options.repetitions, [&] { return batch->Attend(); }));
        const double speed = batch->Bytes() / seconds;
        out << Line("| %s | %d | %lld | %d | %.1f | %.0f | %.0f %% | %s |\n",
                    formats.name.c_str(), group, static_cast<long long>(depth),
                    batch->size(), seconds * 1e6, speed * 1e-9,
                    100 * speed / copy,
                    batch->cache().DecodeKernelName(0).c_str())
            << std::flush;
      }
  return absl::OkStatus();
}

absl::Status PrefillTable(const CudaBenchmarkOptions& options, Timer& timer,
                          std::ostream& out) {
  out << "\n| cache | G | tokens | queries | us | TFLOP/s |\n"
         "|---|---|---|---|---|---|\n";
  const int group = options.groups.back();
  for (const Formats& formats : AllFormats())
    for (const int64_t depth : options.depths) {
      const int64_t queries = std::min(options.prefill_queries, depth);
      KVMIX_ASSIGN_OR_RETURN(
          const std::unique_ptr<Batch> batch,
          Batch::Create(options, formats, group, depth, queries));
      KVMIX_ASSIGN_OR_RETURN(
          const double seconds,
          timer.Median(options.repetitions, [&] { return batch->Attend(); }));
      const double seen =
          static_cast<double>(queries) *
          (static_cast<double>(depth) - static_cast<double>(queries - 1) / 2);
      const double flop =
          4.0 * options.head_dim * options.kv_heads * group * seen;
      out << Line("| %s | %d | %lld | %lld | %.1f | %.1f |\n",
                  formats.name.c_str(), group, static_cast<long long>(depth),
                  static_cast<long long>(queries), seconds * 1e6,
                  flop / seconds * 1e-12)
          << std::flush;
    }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunCudaAttentionBenchmark(const CudaBenchmarkOptions& options,
                                       std::ostream& out) {
  Timer timer;
  KVMIX_RETURN_IF_ERROR(timer.Init());
  KVMIX_ASSIGN_OR_RETURN(const double copy, CopySpeed(options, timer));
  out << Line("Device copy of %lld MiB: %.0f GB/s, read and written.\n",
              static_cast<long long>(options.copy_bytes >> 20), copy * 1e-9)
      << Line("head_dim %d, %d KV heads, groups of 32, medians of %d.\n\n",
              options.head_dim, options.kv_heads, options.repetitions)
      << "## Decode attention\n\n"
         "One layer, one token a sequence. Bytes: what the ledger bills of "
         "packed and unquantized tokens, once.\n";
  KVMIX_RETURN_IF_ERROR(DecodeTable(options, copy, timer, out));
  out << "\n## Prefill attention\n\nOne sequence, its last tokens as a "
         "chunk.\n";
  return PrefillTable(options, timer, out);
}

}  // namespace kvmix
