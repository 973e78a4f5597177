// Profiles and plans as tables, one row a layer.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "experiments/record.pb.h"
#include "experiments/table.h"
#include "kvmix/cache_plan.pb.h"

namespace kvmix {

// Scores, their standard errors over prompts, and ranks (1 matters most).
Table ProfileTable(const ImportanceProfile& profile);

// Formats of keys and values, as "3 bits, per channel, group 11".
Table PlanTable(const CachePlan& plan);

// "3 bits, per channel, group 11"
std::string FormatText(const QuantFormat& format);

// "K 2.19 nominal, 3.18 effective; V ...; packed part 4.9x smaller than fp16"
absl::StatusOr<std::string> PlanSummary(const CachePlan& plan, int head_dim);

}  // namespace kvmix
