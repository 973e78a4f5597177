// Token ids in a text file, between white space: what kvmix tokenize prints.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace kvmix {

absl::StatusOr<std::vector<int32_t>> ReadTokenFile(const std::string& path);

}  // namespace kvmix
