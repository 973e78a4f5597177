// Results in the shape that lm-evaluation-harness writes, one file a method.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "experiments/record.pb.h"
#include "nlohmann/json.hpp"

namespace kvmix {

// results.<dataset>."<metric>,none" and its "_stderr", n-samples, configs.
// Metrics are named as there: acc, exact_match, f1, ..., word_perplexity.
// NotFound lists the record's methods.
absl::StatusOr<nlohmann::ordered_json> LmEvalJson(const RunRecord& record,
                                                  const std::string& method);

}  // namespace kvmix
