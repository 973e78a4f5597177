#include "kvmix/allocation/layer_ranking.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

std::vector<int> Ranked(const std::vector<double>& scores) {
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

absl::Status CheckNumLayers(const ImportanceProfile& profile, int num_layers) {
  if (profile.layer_size() == num_layers) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "the profile has ", profile.layer_size(), " layers but the model ",
      num_layers, "; profile this model"));
}

absl::StatusOr<LayerRanking> RankLayers(const ImportanceProfile& profile,
                                        int num_layers) {
  KVMIX_RETURN_IF_ERROR(CheckNumLayers(profile, num_layers));
  std::vector<double> keys, values;
  for (int i = 0; i < num_layers; ++i) {
    const LayerImportance& layer = profile.layer(i);
    if (!std::isfinite(layer.key()) || !std::isfinite(layer.value())) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the profile's scores of layer ", i, " are ", layer.key(), " and ",
          layer.value(), " but must be finite"));
    }
    keys.push_back(layer.key());
    values.push_back(layer.value());
  }
  return LayerRanking{.key = Ranked(keys), .value = Ranked(values)};
}

}  // namespace kvmix
