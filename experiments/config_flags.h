// Flags of the commands that work on a config: which one, and what differs.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "experiments/command_line.h"
#include "experiments/experiment.pb.h"

namespace kvmix {

struct ConfigFlags {
  std::string config = "experiments/configs/quickstart.textproto";
  std::string model;
  std::string prompts;
  std::vector<std::string> overrides;
  int threads = -1;

  void AddTo(CommandLine& command_line);
  absl::StatusOr<ExperimentConfig> Load() const;
};

// The method of that name; the config's last one if it is empty. NotFound lists
// the names.
absl::StatusOr<Method> FindMethod(const ExperimentConfig& config,
                                  const std::string& name);

}  // namespace kvmix
