#include "kvmix/allocation/layer_groups.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvmix {
namespace {

using ::testing::ElementsAre;

// Keys of each layer at 100 and 300 bytes, values at 100, 200 and 300; losses
// of the layer's `size`.
ChoiceTable Table(const std::vector<double>& sizes) {
  ChoiceTable table;
  for (double size : sizes) {
    table.push_back({{100, 8 * size}, {300, size}});
    table.push_back({{100, 4 * size}, {200, 3 * size}, {300, 2 * size}});
  }
  return table;
}

std::vector<std::vector<int>> LayersOf(const std::vector<LayerGroup>& groups) {
  std::vector<std::vector<int>> layers;
  for (const LayerGroup& group : groups) layers.push_back(group.layers);
  return layers;
}

TEST(LayerGroupsTest, LayersThatLoseAlikeAreJoined) {
  const ChoiceTable table = Table({1, 10, 1.1, 100, 14, 1.3});
  using Groups = std::vector<std::vector<int>>;
  EXPECT_EQ(LayersOf(GroupLayers(table, 0)),
            (Groups{{0}, {1}, {2}, {3}, {4}, {5}}));
  EXPECT_EQ(LayersOf(GroupLayers(table, 5)),
            (Groups{{0, 2}, {1}, {3}, {4}, {5}}));
  // 1.3 is 1.3 times 1, 14 is 1.4 times 10.
  EXPECT_EQ(LayersOf(GroupLayers(table, 4)),
            (Groups{{0, 2, 5}, {1}, {3}, {4}}));
  EXPECT_EQ(LayersOf(GroupLayers(table, 3)), (Groups{{0, 2, 5}, {1, 4}, {3}}));
  EXPECT_EQ(LayersOf(GroupLayers(table, 2)), (Groups{{0, 2, 5}, {1, 3, 4}}));
  EXPECT_EQ(LayersOf(GroupLayers(table, 1)), (Groups{{0, 1, 2, 3, 4, 5}}));
}

// 1 and 2 are joined first; 4 is twice 2, but four times 1, and 9 is only 2.25
// times 4.
TEST(LayerGroupsTest, TheFarthestLayersOfTwoGroupsCount) {
  using Groups = std::vector<std::vector<int>>;
  EXPECT_EQ(LayersOf(GroupLayers(Table({1, 4, 2, 9}), 2)),
            (Groups{{0, 2}, {1, 3}}));
}

// Of the six pairs of a layer, in bytes and losses:
//   200: 12 | 300: 11 | 400: 10 | 400: 5 | 500: 4 | 600: 3
TEST(LayerGroupsTest, PairsThatAreBeatenInBothAreLeftOut) {
  const std::vector<LayerGroup> groups = GroupLayers(Table({1, 2}), 1);
  ASSERT_EQ(groups.size(), 1);
  std::vector<std::vector<double>> pairs;
  for (const FormatPair& pair : groups[0].pairs) {
    pairs.push_back({static_cast<double>(pair.key),
                     static_cast<double>(pair.value),
                     static_cast<double>(pair.bytes), pair.loss});
  }
  EXPECT_THAT(
      pairs,
      ElementsAre(ElementsAre(0, 0, 400, 36), ElementsAre(0, 1, 600, 33),
                  ElementsAre(1, 0, 800, 15), ElementsAre(1, 1, 1000, 12),
                  ElementsAre(1, 2, 1200, 9)));
}

TEST(LayerGroupsTest, ChoicesAreThoseOfTheGroup) {
  const std::vector<LayerGroup> groups = GroupLayers(Table({1, 50, 1.1}), 2);
  EXPECT_THAT(ChoicesOf(groups, {1, 2}), ElementsAre(0, 1, 1, 0, 0, 1));
}

TEST(LayerGroupsTest, LosslessChoicesDoNotKeepLayersApart) {
  ChoiceTable table = Table({1, 30, 1});
  table[0].push_back({1600, 0});
  table[2].push_back({1600, 0});
  table[4].push_back({1600, 0});
  EXPECT_THAT(LayersOf(GroupLayers(table, 2)),
              ElementsAre(ElementsAre(0, 2), ElementsAre(1)));
  for (std::vector<Choice>& item : table) {
    for (Choice& choice : item) choice.loss = 0;
  }
  const std::vector<LayerGroup> lossless = GroupLayers(table, 0);
  EXPECT_EQ(lossless.size(), 3);
  EXPECT_EQ(lossless[0].pairs.size(), 1);
}

}  // namespace
}  // namespace kvmix
