#include "kvmix/allocation/layer_groups.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace kvmix {
namespace {

// Log losses of every layer, [L][formats of keys, then of values].
std::vector<std::vector<double>> LogLosses(const ChoiceTable& table) {
  double least = std::numeric_limits<double>::infinity();
  for (const std::vector<Choice>& item : table) {
    for (const Choice& choice : item)
      if (choice.loss > 0) least = std::min(least, choice.loss);
  }
  std::vector<std::vector<double>> logs(table.size() / 2);
  for (size_t i = 0; i < table.size(); ++i) {
    for (const Choice& choice : table[i]) {
      logs[i / 2].push_back(
          std::isfinite(least) ? std::log(std::max(choice.loss, least)) : 0);
    }
  }
  return logs;
}

double Distance(const std::vector<double>& a, const std::vector<double>& b) {
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i)
    most = std::max(most, std::abs(a[i] - b[i]));
  return most;
}

using Groups = std::vector<std::vector<int>>;

void JoinClosest(const std::vector<std::vector<double>>& logs, Groups& groups) {
  double least = std::numeric_limits<double>::infinity();
  size_t first = 0, second = 1;
  for (size_t a = 0; a < groups.size(); ++a) {
    for (size_t b = a + 1; b < groups.size(); ++b) {
      double most = 0;
      for (int i : groups[a]) {
        for (int j : groups[b])
          most = std::max(most, Distance(logs[i], logs[j]));
      }
      if (most < least) least = most, first = a, second = b;
    }
  }
  groups[first].insert(groups[first].end(), groups[second].begin(),
                       groups[second].end());
  std::sort(groups[first].begin(), groups[first].end());
  groups.erase(groups.begin() + static_cast<int64_t>(second));
}

std::vector<FormatPair> PairsOf(const ChoiceTable& table,
                                const std::vector<int>& layers) {
  const size_t keys = table[2 * layers[0]].size();
  const size_t values = table[2 * layers[0] + 1].size();
  std::vector<FormatPair> pairs;
  for (size_t k = 0; k < keys; ++k) {
    for (size_t v = 0; v < values; ++v) {
      FormatPair& pair = pairs.emplace_back();
      pair.key = static_cast<int>(k);
      pair.value = static_cast<int>(v);
      for (int i : layers) {
        const Choice& key = table[2 * i][k];
        const Choice& value = table[2 * i + 1][v];
        pair.bytes += key.bytes + value.bytes;
        pair.loss += key.loss + value.loss;
      }
    }
  }
  return pairs;
}

std::vector<FormatPair> Undominated(std::vector<FormatPair> pairs) {
  std::stable_sort(
      pairs.begin(), pairs.end(), [](const FormatPair& a, const FormatPair& b) {
        return a.bytes != b.bytes ? a.bytes < b.bytes : a.loss < b.loss;
      });
  std::vector<FormatPair> kept;
  for (const FormatPair& pair : pairs) {
    if (kept.empty() || pair.loss < kept.back().loss) kept.push_back(pair);
  }
  return kept;
}

}  // namespace

std::vector<LayerGroup> GroupLayers(const ChoiceTable& table, int max_groups) {
  Groups layers;
  for (size_t i = 0; i < table.size() / 2; ++i)
    layers.push_back({static_cast<int>(i)});
  const std::vector<std::vector<double>> logs = LogLosses(table);
  while (max_groups > 0 && static_cast<int>(layers.size()) > max_groups)
    JoinClosest(logs, layers);
  std::vector<LayerGroup> groups;
  for (std::vector<int>& group : layers) {
    std::vector<FormatPair> pairs = Undominated(PairsOf(table, group));
    groups.push_back({std::move(group), std::move(pairs)});
  }
  return groups;
}

std::vector<int> ChoicesOf(const std::vector<LayerGroup>& groups,
                           const std::vector<int>& pairs) {
  size_t num_layers = 0;
  for (const LayerGroup& group : groups) num_layers += group.layers.size();
  std::vector<int> chosen(2 * num_layers);
  for (size_t g = 0; g < groups.size(); ++g) {
    for (int i : groups[g].layers) {
      chosen[2 * i] = groups[g].pairs[pairs[g]].key;
      chosen[2 * i + 1] = groups[g].pairs[pairs[g]].value;
    }
  }
  return chosen;
}

}  // namespace kvmix
