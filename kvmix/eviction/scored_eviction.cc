#include "kvmix/eviction/scored_eviction.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvmix/base/validators.h"

namespace kvmix {

absl::StatusOr<EvictionBudget> CompletedBudget(EvictionBudget budget,
                                               const BudgetDefaults& defaults) {
  KVMIX_RETURN_IF_ERROR(
      ValidateIsNonNegative(budget.tokens(), "options.budget.tokens"));
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(budget.fraction(), 0.0, 1.0,
                                          "options.budget.fraction"));
  if (budget.tokens() != 0 && budget.fraction() != 0)
    return absl::InvalidArgumentError(
        "options.budget has both tokens and fraction; leave one out");
  if (budget.tokens() == 0 && budget.fraction() == 0) budget.set_fraction(0.5);
  if (!budget.has_first_tokens())
    budget.set_first_tokens(defaults.first_tokens);
  KVMIX_RETURN_IF_ERROR(ValidateIsNonNegative(budget.first_tokens(),
                                              "options.budget.first_tokens"));
  if (budget.has_recent_tokens() && budget.has_recent_share())
    return absl::InvalidArgumentError(
        "options.budget has both recent_tokens and recent_share; leave one "
        "out");
  if (!budget.has_recent_tokens() && !budget.has_recent_share()) {
    if (defaults.recent_share > 0) {
      budget.set_recent_share(defaults.recent_share);
    } else {
      budget.set_recent_tokens(defaults.recent_tokens);
    }
  }
  KVMIX_RETURN_IF_ERROR(ValidateIsNonNegative(budget.recent_tokens(),
                                              "options.budget.recent_tokens"));
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(budget.recent_share(), 0.0, 1.0,
                                          "options.budget.recent_share"));
  if (budget.step() == 0) budget.set_step(32);
  KVMIX_RETURN_IF_ERROR(
      ValidateIsPositive(budget.step(), "options.budget.step"));
  return budget;
}

int64_t ScoredEviction::BudgetOf(int64_t tokens_seen) const {
  const int64_t tokens =
      budget_.tokens() != 0
          ? budget_.tokens()
          : static_cast<int64_t>(budget_.fraction() *
                                 static_cast<double>(tokens_seen));
  return std::max(tokens, budget_.first_tokens() + budget_.recent_tokens());
}

int64_t ScoredEviction::Recent(int64_t tokens_seen) const {
  return budget_.has_recent_share()
             ? static_cast<int64_t>(budget_.recent_share() *
                                    static_cast<double>(BudgetOf(tokens_seen)))
             : budget_.recent_tokens();
}

bool ScoredEviction::Stays(const EvictionState& state, const EvictionHead& head,
                           int64_t t) const {
  return t < head.first_candidate ||
         head.positions[t] < budget_.first_tokens() ||
         head.positions[t] >= state.tokens_seen - Recent(state.tokens_seen);
}

std::vector<int64_t> ScoredEviction::Keep(const EvictionState& state) const {
  return std::vector<int64_t>(state.heads.size(), BudgetOf(state.tokens_seen));
}

std::vector<int64_t> ScoredEviction::KeepByScores(
    const EvictionState& state, const std::vector<std::vector<float>>&) const {
  return Keep(state);
}

bool ScoredEviction::WouldDrop(const EvictionState& state) const {
  const std::vector<int64_t> keep = Keep(state);
  int64_t excess = 0;
  for (size_t i = 0; i < state.heads.size(); ++i)
    excess += state.heads[i].num_tokens - state.heads[i].demoted - keep[i];
  return excess >= std::max(budget_.step(), state.multiple) *
                       static_cast<int64_t>(state.heads.size());
}

std::vector<TokenList> ScoredEviction::TokensToDrop(
    const EvictionState& state) const {
  std::vector<TokenList> dropped(state.heads.size());
  if (!WouldDrop(state)) return dropped;
  std::vector<std::vector<float>> scores;
  for (size_t i = 0; i < state.heads.size(); ++i) {
    scores.emplace_back(state.heads[i].num_tokens);
    Score(state, static_cast<int>(i), scores[i].data());
  }
  const std::vector<int64_t> keep = KeepByScores(state, scores);
  for (size_t i = 0; i < state.heads.size(); ++i) {
    const EvictionHead& head = state.heads[i];
    TokenList candidates;
    for (int64_t t = head.first_candidate; t < head.num_tokens; ++t)
      if (!Stays(state, head, t)) candidates.push_back(t);
    int64_t count = std::min<int64_t>(head.num_tokens - head.demoted - keep[i],
                                      candidates.size());
    count -= count % state.multiple;
    if (count <= 0) continue;
    // The lowest scores leave; of equal ones the older tokens.
    const auto leaves_first = [&](int64_t a, int64_t b) {
      return scores[i][a] != scores[i][b]
                 ? scores[i][a] < scores[i][b]
                 : head.positions[a] < head.positions[b];
    };
    std::nth_element(candidates.begin(), candidates.begin() + (count - 1),
                     candidates.end(), leaves_first);
    candidates.resize(count);
    std::sort(candidates.begin(), candidates.end());
    dropped[i] = std::move(candidates);
  }
  return dropped;
}

double SumOfSquares(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return sum;
}

std::vector<float> MeanAttention(const EvictionHead& head) {
  std::vector<double> sum(head.num_tokens);
  std::vector<double> weights(head.num_tokens);
  for (int64_t row = 0; row < head.score_rows; ++row) {
    const float* scores = head.scores + row * head.num_tokens;
    const float max = *std::max_element(scores, scores + head.num_tokens);
    double total = 0;
    for (int64_t t = 0; t < head.num_tokens; ++t) {
      weights[t] = std::exp(static_cast<double>(scores[t]) - max);
      total += weights[t];
    }
    for (int64_t t = 0; t < head.num_tokens; ++t) sum[t] += weights[t] / total;
  }
  std::vector<float> mean(head.num_tokens);
  for (int64_t t = 0; t < head.num_tokens; ++t)
    mean[t] = static_cast<float>(sum[t] / static_cast<double>(head.score_rows));
  return mean;
}

absl::StatusOr<std::unique_ptr<ScoredEviction>> MakeInnerPolicy(
    const Component& inner, const char* fallback) {
  Component component = inner;
  if (component.name().empty()) component.set_name(fallback);
  KVMIX_ASSIGN_OR_RETURN(
      std::unique_ptr<EvictionPolicy> made,
      Registry<EvictionPolicy>::Get().Make(component, "options.inner"));
  auto* scored = dynamic_cast<ScoredEviction*>(made.get());
  if (scored == nullptr)
    return absl::InvalidArgumentError(absl::StrCat(
        "options.inner is \"", component.name(),
        "\" but must be a policy that scores tokens, such as h2o or snapkv"));
  made.release();
  return std::unique_ptr<ScoredEviction>(scored);
}

}  // namespace kvmix
