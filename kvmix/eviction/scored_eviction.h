// ScoredEviction: a policy that keeps, in each KV head, the tokens of highest
// score, as many as a budget allows.
//
// A policy of this kind says one thing: the score of every token. Policies that
// share a budget out, over layers ("pyramid") or heads ("ada"), or demote
// instead of dropping ("demote"), stand around one of these.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kvmix/base/component.pb.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/eviction/eviction_budget.pb.h"
#include "kvmix/eviction/eviction_policy.h"

namespace kvmix {

// What a policy keeps if its options do not say.
struct BudgetDefaults {
  int64_t first_tokens = 4;
  int64_t recent_tokens = 32;
  double recent_share = 0;  // not 0: instead of recent_tokens
};

// `budget` with defaults in place of what is unset. Errors name
// options.budget's fields.
absl::StatusOr<EvictionBudget> CompletedBudget(
    EvictionBudget budget, const BudgetDefaults& defaults = {});

class ScoredEviction : public EvictionPolicy {
 public:
  // `budget` is complete.
  explicit ScoredEviction(const EvictionBudget& budget) : budget_(budget) {}

  const EvictionBudget& budget() const { return budget_; }
  // Tokens that a head keeps of `tokens_seen`, at least those that stay in any
  // case.
  int64_t BudgetOf(int64_t tokens_seen) const;

  // Scores [N] of the head's tokens, higher ones stay. Only tokens in
  // [first_candidate, N) count.
  virtual void Score(const EvictionState& state, int head,
                     float* scores) const = 0;

  // Tokens that every head keeps, before they are rounded to a multiple.
  // Default: BudgetOf for every head.
  virtual std::vector<int64_t> Keep(const EvictionState& state) const;
  // The same, with scores [G][N] known. Default: Keep.
  virtual std::vector<int64_t> KeepByScores(
      const EvictionState& state,
      const std::vector<std::vector<float>>& scores) const;

  bool WouldDrop(const EvictionState& state) const final;
  std::vector<TokenList> TokensToDrop(const EvictionState& state) const final;

 protected:
  // Whether token `t` of a head stays whatever its score.
  bool Stays(const EvictionState& state, const EvictionHead& head,
             int64_t t) const;
  // First and newest tokens that stay so, of `tokens_seen`.
  int64_t NumStaying(int64_t tokens_seen) const {
    return budget_.first_tokens() + Recent(tokens_seen);
  }

 private:
  int64_t Recent(int64_t tokens_seen) const;
  const EvictionBudget budget_;
};

// x [n]
double SumOfSquares(const float* x, int64_t n);

// [N] mean over the head's score rows of the softmax of a row.
std::vector<float> MeanAttention(const EvictionHead& head);

// The policy that options.inner names, `fallback` if it names none. Errors: one
// that does not score.
absl::StatusOr<std::unique_ptr<ScoredEviction>> MakeInnerPolicy(
    const Component& inner, const char* fallback);

}  // namespace kvmix
