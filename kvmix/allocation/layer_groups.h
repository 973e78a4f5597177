// GroupLayers: a smaller problem in place of a ChoiceTable's, as KVTuner (Li et
// al., arXiv 2502.04420, section 5) makes it before it searches: layers that
// lose alike take the same formats, and of the pairs of formats for keys and
// values only those stay that no other pair beats in both bytes and loss.
// At head granularity a KV head takes the place of a layer.
//
// L = layers.
#pragma once

#include <cstdint>
#include <vector>

#include "kvmix/allocation/choice_table.h"

namespace kvmix {

// A choice for the keys and one for the values of every layer of a group.
struct FormatPair {
  int key = 0;
  int value = 0;
  int64_t bytes = 0;  // of all layers of the group
  double loss = 0;    // their sum
};

struct LayerGroup {
  std::vector<int> layers;        // ascending
  std::vector<FormatPair> pairs;  // bytes ascend, losses fall
};

// At most max_groups groups, in the order of their first layers; 0: every layer
// by itself. Those two groups are joined, again and again, whose layers' losses
// differ by the smallest factor: the largest factor between any two layers of
// them, over all formats of keys and values (complete linkage of log losses;
// KVTuner clusters by density). Losses of 0 count as the table's smallest
// positive one.
std::vector<LayerGroup> GroupLayers(const ChoiceTable& table, int max_groups);

// chosen [2 L] of the pair that each group takes.
std::vector<int> ChoicesOf(const std::vector<LayerGroup>& groups,
                           const std::vector<int>& pairs);

}  // namespace kvmix
