// Profiles and plans as tables, one row a layer.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "experiments/record.pb.h"
#include "experiments/table.h"
#include "kvmix/allocation/choice_table.h"
#include "kvmix/cache_plan.pb.h"

namespace kvmix {

// Scores, their standard errors over prompts, and ranks (1 matters most).
Table ProfileTable(const ImportanceProfile& profile);

// Formats of keys and values, as "3 bits, per channel, group 11"; a row for
// each KV head of a layer whose heads have formats of their own.
Table PlanTable(const CachePlan& plan);

// What choosing otherwise would have cost: for the keys and the values of every
// layer, or of every KV head if `choices` has these, the predicted loss of the
// format that the plan has, and of each other format on offer the difference
// from it, with the bytes that it takes more.
// "-" where the plan has a format that is not on offer.
Table AlternativesTable(const CachePlan& plan, const FormatChoices& formats,
                        const ChoiceTable& choices);

// "3 bits, per channel, group 11"
std::string FormatText(const QuantFormat& format);

// "K 2.19 nominal, 3.18 effective; V ...; packed part 4.9x smaller than fp16"
absl::StatusOr<std::string> PlanSummary(const CachePlan& plan, int head_dim);

}  // namespace kvmix
