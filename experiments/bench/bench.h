// kvmix bench: speed and memory of a model and its cache, stored in several
// ways, at several depths.
//
// A row is one way to store the cache at one depth, batch and number of
// threads. Each of its measurements starts from caches that hold `depth` tokens
// (RandomStates) and times either one prefill of prompt tokens in one chunk, or
// a number of decode steps, all sequences of the batch together. Rows take
// turns, repetition by repetition, so that what slows the machine for a while
// slows all rows alike: compare rows of one run.
//
// With `throughput` (throughput.h) a batch is served whole instead, on the CPU
// or on a CUDA device: all prompts, then all decode steps.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "experiments/bench/bench_model.h"
#include "experiments/spread.h"

namespace kvmix {

// In BenchOptions::batches: as many sequences as fit in memory.
inline constexpr int64_t kLargestBatch = -1;

struct BenchOptions : BenchModelOptions {
  int prompt_tokens = 512;                      // 0: prefill is not measured
  int decode_tokens = 32;                       // 0: decode is not measured
  std::vector<std::string> methods = {"fp16"};  // bench_methods.h
  std::vector<int64_t> depths = {0};
  std::vector<int64_t> batches = {1};
  std::vector<int64_t> threads = {0};  // 0: one for each core
  int repeat = 5;
  bool throughput = false;
  // Bytes that weights and caches may take together, with `throughput`; 0: all
  // there are on a device.
  int64_t memory_limit = 0;
};

struct BenchRow {
  std::string method;
  int64_t depth = 0;
  int64_t batch = 0;
  int threads = 0;
  // Tokens per second of the whole batch; 0 if not measured.
  Spread prefill;
  Spread decode;
  // Of all caches at `depth`: as the ledger bills them, and the growth of the
  // process's resident memory when they were filled.
  int64_t cache_bytes = 0;
  int64_t resident_bytes = 0;
  // With `throughput`, generated tokens per second of all its time, prompts
  // included; cache_bytes and resident_bytes are after the last step, of caches
  // on a device as the driver counts (DeviceMemoryUse).
  Spread throughput;
  std::string kernels;  // of decode attention, AttentionKernels
  // What a decode step must read: all weights but the input embedding, once,
  // and all codes, scales and tokens of every cache that attention sees.
  int64_t decode_bytes = 0;
  // decode_bytes per second of decode over the read bandwidth of as many
  // threads. Above 1 if much of it stays in the processor's caches.
  double bandwidth_share = 0;
};

struct BenchBandwidth {
  int threads = 0;
  double bytes_per_second = 0;
};

struct BenchReport {
  std::string command;  // as typed; empty if it came from elsewhere
  bool throughput = false;
  int prompt_tokens = 0;
  int decode_tokens = 0;
  std::string model;   // BenchModelName
  std::string device;  // CPU or CUDA
  std::string compute;
  std::string arithmetic;
  int64_t weight_bytes = 0;
  // By threads, ascending, 1 first; none with `throughput`.
  std::vector<BenchBandwidth> bandwidth;
  std::vector<BenchRow> rows;  // threads, depth, batch, method: the last varies
                               // fastest
};

// A report of no rows: what `options` say of it.
BenchReport DescribeBench(const BenchOptions& options);

// Errors: no such shape, model or method; sizes that are not positive or do not
// fit in the model's context; Cancelled when *stop becomes true.
absl::StatusOr<BenchReport> RunBench(const BenchOptions& options,
                                     const std::atomic<bool>* stop = nullptr);

// What importance estimators cost beside a forward pass of the same prompts.
struct ProfileBenchOptions : BenchModelOptions {
  std::vector<std::string> estimators = {"gradient_norm"};
  int prompts = 30;
  int prompt_tokens = 1024;
  std::vector<int64_t> threads = {0};
};

// Sums over the prompts; the spread is of the prompts' own ratios.
struct ProfileBenchRow {
  std::string estimator;
  int threads = 0;
  int prompts = 0;
  int prompt_tokens = 0;
  double forward_seconds = 0;
  double profile_seconds = 0;
  Spread ratio;
};

struct ProfileBenchReport {
  std::string model;
  std::string compute;
  std::vector<ProfileBenchRow> rows;
};

// Prompt by prompt, the forward pass alone (observe_prompts.h) and then the
// estimator's. Errors: as above; an estimator that needs no model.
absl::StatusOr<ProfileBenchReport> RunProfileBench(
    const ProfileBenchOptions& options,
    const std::atomic<bool>* stop = nullptr);

}  // namespace kvmix
