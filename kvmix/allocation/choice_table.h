// ChoiceTable: the problem that allocators under a budget solve.
//
// An item is the keys or the values of one layer, or of one KV head if the
// context's granularity is HEAD. Each of its choices, one for
// each format offered, takes bytes and has a predicted loss; one choice is to
// be made for every item, within the budget. Losses of items are taken to add
// up.
//
// P = parts (AllocationContext): layers, or KV heads. Items 2 p and 2 p + 1 are
// the keys and the values of part p.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/cache_plan.pb.h"
#include "kvmix/importance_profile.pb.h"

namespace kvmix {

struct Choice {
  int64_t bytes = 0;
  double loss = 0;  // in the profile's unit
};

// [2 P] items, [formats of the item's side] choices, in the order of
// FormatChoices.
using ChoiceTable = std::vector<std::vector<Choice>>;

// Bytes alone, losses 0. Errors: no budget, or one that the cheapest plan
// exceeds.
absl::StatusOr<ChoiceTable> BytesOfChoices(const AllocationContext& context);

// With losses: those that the profile holds for each format, or the score times
// the distortion of the format on normal numbers (gaussian_distortion.h). Full
// precision loses nothing. trust_scores: also of a profile whose unit is
// RANK_ONLY. Errors, beside those above: a profile of another number of layers,
// one without losses for a format offered, or of single KV heads where they
// have formats of their own, one whose scores are not losses.
absl::StatusOr<ChoiceTable> LossesOfChoices(const ImportanceProfile& profile,
                                            const AllocationContext& context,
                                            bool trust_scores);

int64_t BytesOf(const ChoiceTable& table, const std::vector<int>& chosen);
double LossOf(const ChoiceTable& table, const std::vector<int>& chosen);

// The cheapest choice of every item; of equal bytes that with the lower loss.
std::vector<int> CheapestChoices(const ChoiceTable& table);

// Changes one item after the other to a dearer choice: of the changes that fit
// the budget, that which saves the most loss for each byte, until none saves
// any. Of equals the earlier item's, then the earlier choice.
void TakeBestSteps(const ChoiceTable& table, int64_t budget_bytes,
                   std::vector<int>& chosen);

// chosen: [2 P], of context.choices.
CachePlan PlanFromChoices(const std::vector<int>& chosen,
                          const AllocationContext& context);

}  // namespace kvmix
