// SingleChangeTrials: trial plans that differ from a common base in the keys or
// the values of one layer, and at head granularity also of one KV head, and
// what each change costs.
//
// For every place, side and format f: the cost of the base with f there, minus
// that of the base with full precision there.
#pragma once

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "kvmix/importance/importance_estimator.h"
#include "kvmix/importance/score_accumulator.h"
#include "quant/quantizer.h"

namespace kvmix {

class SingleChangeTrials {
 public:
  enum class Base {
    kFullPrecision,  // one place's keys or values are quantized
    kFirstFormats,   // all are, to the first of the formats offered
  };
  // What of a result counts as cost.
  using Cost = double TrialResult::*;

  SingleChangeTrials() = default;
  // Precondition: context.formats.
  SingleChangeTrials(const ProfileContext& context, Base base, Cost cost);

  // Each plan once; none for full precision itself, which costs nothing.
  const std::vector<CachePlan>& plans() const { return plans_; }
  absl::Status Observe(const TrialResult& result);
  // Errors: a prompt that has not been seen under every plan, or none at all.
  absl::StatusOr<ImportanceProfile> Profile(const std::string& estimator) const;

 private:
  struct Prompt {
    int64_t num_tokens = 0;
    std::map<int, double> costs;  // by plan
  };
  static constexpr int kFullPrecisionPlan = -1;

  static constexpr int kAllHeads = -1;

  int AddPlan(const CachePlan& plan);
  void AddChange(int layer, Side side, int head);
  CachePlan Changed(int layer, Side side, int head,
                    const QuantFormat& format) const;
  std::vector<double> CostsOf(int layer, Side side, int head,
                              const Prompt& prompt) const;
  // Head by head; none at layer granularity.
  std::vector<double> HeadCostsOf(int layer, Side side,
                                  const Prompt& prompt) const;

  FormatChoices formats_;
  int heads_apart_ = 0;  // KV heads, at head granularity
  Cost cost_ = nullptr;
  CachePlan base_;
  std::vector<CachePlan> plans_;
  std::map<std::string, int> index_;  // of plans_, by their bytes
  struct Change {
    int reference = 0;         // plan with full precision there
    std::vector<int> formats;  // plan with each format there
  };
  std::map<std::tuple<int, Side, int>, Change> changes_;  // layer, side, head
  std::map<int, Prompt> prompts_;
};

}  // namespace kvmix
