// JSONL files: one JSON object a line. Blank lines are skipped.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvmix {

// Hands every line's object to `read` until `limit` of them were read (0: all).
// Lines that are no object, and those that `read` refuses, are named by number
// and reason in an InvalidArgument that also counts the good ones; with
// `skip_bad` it goes to standard error instead. NotFound: no such file, no good
// line.
absl::Status ReadJsonl(
    const std::string& path, int limit, bool skip_bad,
    const std::function<absl::Status(const nlohmann::json&)>& read);

// Members of an object. Errors name the member.
absl::StatusOr<std::string> JsonText(const nlohmann::json& object,
                                     const char* name);
absl::StatusOr<std::vector<std::string>> JsonTexts(const nlohmann::json& object,
                                                   const char* name);

}  // namespace kvmix
