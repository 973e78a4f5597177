#include "kvmix/base/random.h"

#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

namespace kvmix {
namespace {

std::array<uint32_t, 4> Block(uint64_t seed, uint64_t stream, uint64_t block) {
  CounterRandom random(seed, stream, block);
  return {random.Next32(), random.Next32(), random.Next32(), random.Next32()};
}

// The vectors of the Random123 distribution (kat_vectors, philox4x32 10).
TEST(CounterRandomTest, GivesThePublishedPhiloxVectors) {
  EXPECT_EQ(Block(0, 0, 0), (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d,
                                                     0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Block(~0ull, ~0ull, ~0ull),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6,
                                     0x6d5451fd}));
  EXPECT_EQ(Block(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420,
                                     0x24126ea1}));
}

TEST(CounterRandomTest, ABlockIsFourDraws) {
  CounterRandom from_start(7, 3);
  for (int i = 0; i < 8; ++i) from_start.Next32();
  CounterRandom from_block_two(7, 3, /*block=*/2);
  for (int i = 0; i < 9; ++i)
    EXPECT_EQ(from_start.Next32(), from_block_two.Next32()) << "draw " << i;
}

TEST(CounterRandomTest, StreamsAndSeedsDiffer) {
  EXPECT_NE(Block(1, 0, 0), Block(0, 1, 0));
  EXPECT_NE(Block(1, 0, 0), Block(2, 0, 0));
  EXPECT_NE(Block(1, 0, 0), Block(1, 1, 0));
}

TEST(CounterRandomTest, Next64TakesTheLowHalfFirst) {
  EXPECT_EQ(CounterRandom(0, 0).Next64(), 0xe169c58d6627e8d5ull);
}

TEST(CounterRandomTest, BelowStaysInRangeAndIsEven) {
  CounterRandom random(11, 0);
  constexpr int kDraws = 70000;
  std::vector<int> count(7);
  for (int i = 0; i < kDraws; ++i) {
    const uint64_t x = random.Below(7);
    ASSERT_LT(x, 7u);
    ++count[x];
  }
  // Binomial with standard deviation 92.6; five of them.
  for (int i = 0; i < 7; ++i)
    EXPECT_NEAR(count[i], kDraws / 7, 463) << "value " << i;
  EXPECT_EQ(random.Below(1), 0u);
}

TEST(CounterRandomTest, BelowRejectsWhatWouldBias) {
  // For n = 3 * 2^62 a quarter of the 64-bit words must be rejected; without
  // rejection the numbers that are 0 mod 3 get half of the draws.
  CounterRandom random(5, 0);
  constexpr int kDraws = 30000;
  std::vector<int> count(3);
  for (int i = 0; i < kDraws; ++i) ++count[random.Below(3ull << 62) % 3];
  for (int i = 0; i < 3; ++i)
    EXPECT_NEAR(count[i], kDraws / 3, 5 * 82) << "residue " << i;
}

TEST(CounterRandomTest, UniformAndNormalHaveTheirMoments) {
  CounterRandom random(3, 9);
  constexpr int kDraws = 40000;
  double sum = 0, uniform_sum = 0, squares = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double u = random.Uniform();
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    uniform_sum += u;
    const double x = random.Normal();
    ASSERT_TRUE(std::isfinite(x));
    sum += x;
    squares += x * x;
  }
  // Five standard errors: sqrt(1/12), 1 and sqrt(2), each over sqrt(40000) =
  // 200.
  EXPECT_NEAR(uniform_sum / kDraws, 0.5, 5 * 0.2887 / 200);
  EXPECT_NEAR(sum / kDraws, 0.0, 5 * 1.0 / 200);
  EXPECT_NEAR(squares / kDraws, 1.0, 5 * 1.4143 / 200);
}

}  // namespace
}  // namespace kvmix
