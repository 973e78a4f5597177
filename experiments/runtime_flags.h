// Flags that say how a model computes, as the enums of ModelSource name it.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "experiments/command_line.h"
#include "experiments/experiment.pb.h"

namespace kvmix {

// --compute. Errors of Apply: a value that is none, with those that are; upper
// or lower case.
struct ComputeFlag {
  std::string value = "float32";

  void AddTo(CommandLine& command_line);
  absl::Status Apply(ModelSource& source) const;
};

// --device: cpu, or cuda, the first CUDA device; the same.
struct DeviceFlag {
  std::string value = "cpu";

  void AddTo(CommandLine& command_line);
  absl::Status Apply(ModelSource& source) const;
};

// --arithmetic, of attention; the same.
struct ArithmeticFlag {
  std::string value = "float";

  void AddTo(CommandLine& command_line);
  absl::Status Apply(ModelSource& source) const;
};

}  // namespace kvmix
