// The model that a benchmark runs: random weights of a known shape, or files.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "experiments/experiment.pb.h"
#include "models/device_model.h"
#include "models/transformer.h"

namespace kvmix {

struct BenchModelOptions {
  // A name of models/random_model.h, with random weights; or else, if empty,
  // `model`'s path. How and where it computes is `model`'s either way.
  std::string shape;
  ModelSource model;
  // How random weights are stored, as GGUF names it; ignored for files.
  std::string weights = "BF16";
  bool pin_threads = false;  // each to a CPU of its own
};

// Of everything random in a benchmark.
inline constexpr uint64_t kBenchSeed = 1;

// Error: both of shape and path, or neither.
absl::Status ValidateBenchModel(const BenchModelOptions& options);

// The path, or shape and stored type: "135m BF16".
std::string BenchModelName(const BenchModelOptions& options);

// num_threads: 0, one for each core. Errors: no such shape, weights or model.
absl::StatusOr<std::unique_ptr<Transformer>> LoadBenchTransformer(
    const BenchModelOptions& options, int64_t num_threads);

// The same on the CUDA device; `threads` outlive it. Errors: also those of
// LoadCudaModel.
absl::StatusOr<std::unique_ptr<DeviceModel>> LoadBenchDevice(
    const BenchModelOptions& options, ThreadPool& threads);

std::vector<int32_t> RandomTokens(int64_t count, uint64_t stream,
                                  int vocab_size);

}  // namespace kvmix
