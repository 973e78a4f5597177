// Codes, scales and zero points must be those of group_quantizer.h, at the
// places that lane_block.h draws, for every instruction set.

#include "quant/lane_block.h"

#include <cstring>
#include <limits>
#include <memory_resource>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/guarded_memory.h"
#include "kvmix/base/instruction_sets.h"
#include "kvmix/base/random.h"
#include "quant/group_quantizer.h"

namespace kvmix {
namespace {

// Memory that ends where nothing may be read.
template <class T>
using Guarded = std::pmr::vector<T>;
const bool kGuards = [] {
  static testing::GuardedMemory memory;
  std::pmr::set_default_resource(&memory);
  return true;
}();

std::vector<LaneBlock> Formats() {
  std::vector<LaneBlock> formats;
  for (int bits = 1; bits <= 8; ++bits)
    for (bool along : {false, true})
      for (int group : {32, 64})
        formats.push_back({.bits = bits,
                           .lanes = 64,
                           .inner = 192,
                           .group = group,
                           .groups_along_lanes = along});
  return formats;
}

std::string Describe(const LaneBlock& f) {
  return std::to_string(f.bits) + " bits, groups of " +
         std::to_string(f.group) + " along " +
         (f.groups_along_lanes ? "lanes" : "inner");
}

// x [inner, lanes]
Guarded<float> Numbers(const LaneBlock& f) {
  CounterRandom random(11, f.bits);
  Guarded<float> x(f.lanes * f.inner);
  for (float& v : x) v = static_cast<float>(random.Normal());
  x[5] = std::numeric_limits<float>::quiet_NaN();
  x[70] = std::numeric_limits<float>::infinity();
  for (int i = 0; i < f.inner; ++i) x[i * f.lanes + 33] = 2.5f;  // constant
  return x;
}

Guarded<uint8_t> Encode(const LaneBlock& f, const Guarded<float>& x) {
  Guarded<uint8_t> block(f.bytes());
  EncodeLanes(f, {.num_lanes = f.lanes, .num_inner = f.inner}, x.data(),
              f.lanes, block.data());
  return block;
}

// By the formula in lane_block.h.
uint32_t CodeAt(const LaneBlock& f, const Guarded<uint8_t>& block, int lane,
                int inner) {
  uint32_t code = 0;
  int done = 0;  // bits
  for (int width : {8, 4, 2, 1}) {
    if (f.bits == 8 ? width != 8 : (f.bits & width) == 0) continue;
    const int i = inner % 32;
    const int word = done + i / (32 / width);
    const int bit = 8 * (i % 4) + width * (i / 4 % (8 / width));
    const int64_t place =
        ((int64_t{lane} / 32 * (f.inner / 32) + inner / 32) * f.bits + word) *
            32 +
        lane % 32;
    uint32_t value;
    std::memcpy(&value, block.data() + 4 * place, 4);
    code |= (value >> bit & ((1u << width) - 1)) << done;
    done += width;
  }
  return code;
}

using LaneBlockTest = testing::InstructionSetTest;

TEST_P(LaneBlockTest, HoldsWhatGroupQuantizerComputesWhereTheHeaderSays) {
  for (const LaneBlock& f : Formats()) {
    SCOPED_TRACE(Describe(f));
    const Guarded<float> x = Numbers(f);
    const Guarded<uint8_t> block = Encode(f, x);
    const GroupFormat group{.bits = f.bits, .size = f.group};
    std::vector<uint32_t> words(group.words());
    std::vector<float> members(f.group);
    const int outer = f.groups_along_lanes ? f.inner : f.lanes;
    for (int g = 0; g < f.num_groups(); ++g) {
      const int first = g / outer * f.group;  // lane, or inner row
      const int other = g % outer;
      for (int i = 0; i < f.group; ++i)
        members[i] = f.groups_along_lanes ? x[other * f.lanes + first + i]
                                          : x[(first + i) * f.lanes + other];
      Half scale, zero;
      EncodeGroups(group, members.data(), 1, words.data(), &scale, &zero);
      ASSERT_EQ(f.scales(block.data())[g].bits, scale.bits) << g;
      ASSERT_EQ(f.zeros(block.data())[g].bits, zero.bits) << g;
      for (int i = 0; i < f.group; ++i) {
        const int lane = f.groups_along_lanes ? first + i : other;
        const int inner = f.groups_along_lanes ? other : first + i;
        ASSERT_EQ(CodeAt(f, block, lane, inner),
                  UnpackCode(words.data(), group.words(), f.bits, i))
            << "lane " << lane << ", inner " << inner;
      }
    }
  }
}

TEST_P(LaneBlockTest, DecodesAnyPart) {
  for (const LaneBlock& f : Formats()) {
    SCOPED_TRACE(Describe(f));
    const Guarded<uint8_t> block = Encode(f, Numbers(f));
    for (const LanePart& part :
         {LanePart{0, f.lanes, 0, f.inner}, LanePart{0, f.lanes, 7, 1},
          LanePart{0, f.lanes, 30, 100}, LanePart{13, 1, 0, f.inner},
          LanePart{5, 50, 31, 34}}) {
      const int64_t stride = part.num_lanes + 3;
      Guarded<float> x(part.num_inner * stride, -7.0f);
      DecodeLanes(f, part, block.data(), x.data(), stride);
      for (int i = 0; i < part.num_inner; ++i) {
        for (int l = 0; l < stride; ++l) {
          float expected = -7.0f;  // writes no more than asked
          if (l < part.num_lanes) {
            const int lane = part.first_lane + l, inner = part.first_inner + i;
            const int group = f.groups_along_lanes
                                  ? lane / f.group * f.inner + inner
                                  : inner / f.group * f.lanes + lane;
            expected = static_cast<float>(CodeAt(f, block, lane, inner)) *
                           ToFloat(f.scales(block.data())[group]) +
                       ToFloat(f.zeros(block.data())[group]);
          }
          ASSERT_EQ(x[i * stride + l], expected) << i << ", " << l;
        }
      }
    }
  }
}

TEST_P(LaneBlockTest, PartsWrittenOneAfterAnotherMakeTheSameBlock) {
  for (const LaneBlock& f : Formats()) {
    SCOPED_TRACE(Describe(f));
    const Guarded<float> x = Numbers(f);
    Guarded<uint8_t> block(f.bytes());
    const auto encode = [&](const LanePart& part) {
      EncodeLanes(f, part,
                  x.data() + part.first_inner * f.lanes + part.first_lane,
                  f.lanes, block.data());
    };
    if (f.groups_along_lanes) {
      for (int i = 0; i < f.inner; i += 3)
        encode({0, f.lanes, i, std::min(3, f.inner - i)});
    } else {
      for (int l = 0; l < f.lanes; l += 5)
        encode({l, std::min(5, f.lanes - l), 0, f.inner});
    }
    EXPECT_EQ(block, Encode(f, x));
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, LaneBlockTest,
                         ::testing::ValuesIn(testing::InstructionSets()),
                         testing::InstructionSetName());

}  // namespace
}  // namespace kvmix
