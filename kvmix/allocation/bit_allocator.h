// BitAllocator: turns an importance profile into a cache plan.
//
// It sees scores, never traces. One that is told bits turns them into formats
// through the experiment's quantizer; one that keeps to a budget chooses among
// the formats that it is offered, whose bytes it is told. One that searches may
// have plans run on the model.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "kvmix/allocation/plan_evaluator.h"
#include "kvmix/budget.h"
#include "kvmix/cache_plan.pb.h"
#include "kvmix/importance_profile.pb.h"
#include "quant/quantizer.h"

namespace kvmix {

struct AllocationContext {
  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  // What has formats of its own, a part: at layer granularity layer p is part
  // p, at head granularity KV head h of layer i is part i * num_kv_heads + h.
  CachePlan::Granularity granularity = CachePlan::LAYER;
  uint64_t seed = 0;
  const Quantizer* quantizer = nullptr;
  // Formats to choose from, at least one for keys and one for values, what they
  // cost, and the bytes that the plan may take at most. Null and 0 if the
  // experiment has no budget.
  const FormatChoices* choices = nullptr;
  const LayerCosts* costs = nullptr;
  int64_t budget_bytes = 0;
  // Runs the model under trial plans; null where there is no model.
  const PlanEvaluator* evaluator = nullptr;

  int parts_of_layer() const {
    return granularity == CachePlan::HEAD ? num_kv_heads : 1;
  }
  int num_parts() const { return num_layers * parts_of_layer(); }
};

class BitAllocator {
 public:
  virtual ~BitAllocator() = default;
  // False: the plan does not depend on scores, and no profile need be made;
  // `profile` may then be empty.
  virtual bool NeedsProfile() const = 0;
  // True: the plan takes budget_bytes at most, and without a budget Allocate
  // says that it needs one. False: the allocator does not look at the budget.
  virtual bool KeepsBudget() const { return false; }
  // The plan has a format for every layer, or KV head. Errors: a profile of
  // another number of layers, or of a unit that the allocator cannot use, or
  // that does not tell KV heads apart where the context does; bits that the
  // quantizer does not offer; a budget below the cheapest plan.
  virtual absl::StatusOr<CachePlan> Allocate(
      const ImportanceProfile& profile,
      const AllocationContext& context) const = 0;
};

}  // namespace kvmix
