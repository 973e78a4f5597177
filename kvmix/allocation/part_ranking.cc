#include "kvmix/allocation/part_ranking.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

absl::StatusOr<std::vector<int>> Ranked(const ImportanceProfile& profile,
                                        Side side,
                                        const AllocationContext& context) {
  KVMIX_ASSIGN_OR_RETURN(const std::vector<double> scores,
                         ScoresOfParts(profile, side, context));
  for (size_t p = 0; p < scores.size(); ++p) {
    if (std::isfinite(scores[p])) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "the profile's score of layer ", p / context.parts_of_layer(), " ",
        SideName(side), " is ", scores[p], " but must be finite"));
  }
  std::vector<int> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return scores[a] > scores[b]; });
  return order;
}

}  // namespace

int FloorOfShare(double share, int count) {
  constexpr double kRounding = 1e-9;
  return static_cast<int>(std::floor(share * count + kRounding));
}

absl::Status CheckNumLayers(const ImportanceProfile& profile,
                            const AllocationContext& context) {
  if (profile.layer_size() == context.num_layers) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "the profile has ", profile.layer_size(), " layers but the model ",
      context.num_layers, "; profile this model"));
}

absl::StatusOr<std::vector<double>> ScoresOfParts(
    const ImportanceProfile& profile, Side side,
    const AllocationContext& context) {
  KVMIX_RETURN_IF_ERROR(CheckNumLayers(profile, context));
  const bool key = side == Side::kKey;
  std::vector<double> scores;
  for (int i = 0; i < context.num_layers; ++i) {
    const LayerImportance& layer = profile.layer(i);
    if (context.granularity == CachePlan::LAYER) {
      scores.push_back(key ? layer.key() : layer.value());
      continue;
    }
    const auto& heads = key ? layer.key_head() : layer.value_head();
    if (heads.size() != context.num_kv_heads) {
      return absl::InvalidArgumentError(absl::StrCat(
          "granularity is HEAD but the profile of \"", profile.estimator(),
          "\" has ", heads.size(), " scores of single KV heads for layer ", i,
          " ", SideName(side), " and the model has ", context.num_kv_heads,
          "; use an estimator that tells heads apart, as \"gradient_norm\", or "
          "granularity: LAYER"));
    }
    scores.insert(scores.end(), heads.begin(), heads.end());
  }
  return scores;
}

absl::StatusOr<PartRanking> RankParts(const ImportanceProfile& profile,
                                      const AllocationContext& context) {
  PartRanking ranking;
  KVMIX_ASSIGN_OR_RETURN(ranking.key, Ranked(profile, Side::kKey, context));
  KVMIX_ASSIGN_OR_RETURN(ranking.value, Ranked(profile, Side::kValue, context));
  return ranking;
}

}  // namespace kvmix
