// Where files are. `bazel run` changes the working directory, so a relative
// path means what it meant where the command was typed
// (BUILD_WORKING_DIRECTORY).
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace kvmix {

// False also where it cannot be told.
bool PathExists(const std::string& path);

// Path of the running program.
std::string ThisProgram();

// Against the folder where the command was typed.
std::string ResolvePath(const std::string& path);

// The same for a file or folder that must exist; a file that comes with the
// project ("experiments/configs/quickstart.textproto") is found from
// everywhere.
absl::StatusOr<std::string> ResolveInputPath(const std::string& path);

// A model's path, or one of the words "embedded" and "smollm2".
absl::StatusOr<std::string> ResolveModelPath(const std::string& path);

}  // namespace kvmix
