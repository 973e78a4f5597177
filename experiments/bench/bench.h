// kvmix bench: speed and memory of a model and its cache, stored in several
// ways, at several depths.
//
// A row is one way to store the cache at one depth, batch and number of
// threads. Each of its measurements starts from caches that hold `depth` tokens
// (RandomStates) and times either one prefill of prompt tokens in one chunk, or
// a number of decode steps, all sequences of the batch together. Rows take
// turns, repetition by repetition, so that what slows the machine for a while
// slows all rows alike: compare rows of one run.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "experiments/experiment.pb.h"
#include "experiments/spread.h"

namespace kvmix {

struct BenchOptions {
  // A name of models/random_model.h, with random weights; or else, if empty,
  // `model`'s path. How it computes is `model`'s either way.
  std::string shape;
  ModelSource model;
  // How random weights are stored, as GGUF names it; ignored for files.
  std::string weights = "BF16";
  int prompt_tokens = 512;                      // 0: prefill is not measured
  int decode_tokens = 32;                       // 0: decode is not measured
  std::vector<std::string> methods = {"fp16"};  // bench_methods.h
  std::vector<int64_t> depths = {0};
  std::vector<int64_t> batches = {1};
  std::vector<int64_t> threads = {0};  // 0: one for each core
  int repeat = 5;
  bool pin_threads = false;  // each to a CPU of its own
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
  std::string model;  // path, or shape and stored type: "135m BF16"
  std::string compute;
  std::string arithmetic;
  int64_t weight_bytes = 0;
  std::vector<BenchBandwidth> bandwidth;  // by threads, ascending; 1 first
  std::vector<BenchRow> rows;  // threads, depth, batch, method: the last varies
                               // fastest
};

// Errors: no such shape, model or method; sizes that are not positive or do not
// fit in the model's context; Cancelled when *stop becomes true.
absl::StatusOr<BenchReport> RunBench(const BenchOptions& options,
                                     const std::atomic<bool>* stop = nullptr);

// What importance estimators cost beside a forward pass of the same prompts.
struct ProfileBenchOptions {
  std::string shape;  // as in BenchOptions
  ModelSource model;
  std::string weights = "BF16";
  std::vector<std::string> estimators = {"gradient_norm"};
  int prompts = 30;
  int prompt_tokens = 1024;
  std::vector<int64_t> threads = {0};
  bool pin_threads = false;
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
