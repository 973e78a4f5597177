// The small experiment on the embedded model that tests start from.
#pragma once

#include <filesystem>
#include <string>

#include "absl/status/statusor.h"
#include "experiments/experiment.pb.h"
#include "experiments/text_proto.h"
#include "gtest/gtest.h"
#include "kvmix/base/status_macros.h"

namespace kvmix::testing {

// Full precision alone; a test adds datasets and methods.
inline constexpr char kSmallExperiment[] = R"(
name: "small"
seed: 3
model { path: "embedded" }
evaluation { mode: CHUNKED chunk_tokens: 32 }
profile { num_prompts: 2 prompt_tokens: 100 }
importance_estimator { name: "gradient_norm" }
quantizer { name: "group_affine" }
recency_policy { name: "none" }
eviction_policy { name: "keep_all" }
method {
  name: "FP16"
  bit_allocator {
    name: "uniform"
    options {
      [type.googleapis.com/kvmix.UniformOptions] { key_bits: 16 value_bits: 16 }
    }
  }
  recency_policy { name: "none" }
}
)";

// The small experiment, not resolved yet, with the fields of `changes` set and
// its methods and datasets added.
inline absl::StatusOr<ExperimentConfig> SmallExperiment(
    const std::string& changes) {
  ExperimentConfig config, more;
  KVMIX_RETURN_IF_ERROR(ParseTextProto(kSmallExperiment, "small", config));
  KVMIX_RETURN_IF_ERROR(ParseTextProto(changes, "changes", more));
  config.MergeFrom(more);
  return config;
}

// The path of a folder for a test, which holds nothing yet.
inline std::string EmptyFolder(const std::string& name) {
  const std::string path = ::testing::TempDir() + "/" + name;
  std::filesystem::remove_all(path);
  return path;
}

}  // namespace kvmix::testing
