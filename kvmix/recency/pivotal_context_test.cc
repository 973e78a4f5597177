#include <cstdint>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/recency/pivotal_context.pb.h"
#include "kvmix/recency/recency_policy.h"
#include "kvmix/recency/window_trace.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

absl::StatusOr<std::unique_ptr<RecencyPolicy>> Make(
    const PivotalContextOptions& options = {}) {
  Component component;
  component.set_name("pivotal_context");
  component.mutable_options()->PackFrom(options);
  return Registry<RecencyPolicy>::Get().Make(component, "recency_policy");
}

// first, first + 1, .., last
void AppendRun(std::vector<int64_t>& trace, int64_t first, int64_t last) {
  for (int64_t n = first; n <= last; ++n) trace.push_back(n);
}

// `head`, then `cycles` times the run first..last.
std::vector<int64_t> Trace(std::vector<int64_t> head, int64_t first,
                           int64_t last, int cycles) {
  for (int i = 0; i < cycles; ++i) AppendRun(head, first, last);
  return head;
}

std::vector<int64_t> WindowTrace4096(
    const WindowState& stream, const std::vector<int64_t>& golden,
    const PivotalContextOptions& options = {}) {
  return WindowTrace(**Make(options), stream, 4096,
                     static_cast<int>(golden.size()) - 1);
}

constexpr WindowState kTwoBitKeys = {
    .side = Side::kKey, .bits = 2, .granularity = 32};

// 0.1 of 4096: 4096 - 409 = 3687 = 115 * 32 + 7 leaves 416; 417 - 41 = 11 * 32
// + 24 leaves 65; 66 - 6 leaves 34; 35 - 3 leaves 3; the next 32 leave at 35.
TEST(PivotalContextTest, TraceOfTwoBitsWithGroupsOf32) {
  const auto golden = Trace({416, 65, 34}, 3, 34, 10);
  EXPECT_EQ(WindowTrace4096(kTwoBitKeys, golden), golden);
}

TEST(PivotalContextTest, TraceOfFourBitsWithGroupsOf32) {
  const auto golden = Trace({832, 193, 66, 35, 36, 37, 38}, 7, 38, 10);
  EXPECT_EQ(WindowTrace4096({.side = Side::kKey, .bits = 4, .granularity = 32},
                            golden),
            golden);
}

TEST(PivotalContextTest, TraceOfThreeBitWordsOf11Tokens) {
  const auto golden = Trace({829, 170, 39, 18, 8, 9, 10, 11, 12}, 2, 12, 20);
  EXPECT_EQ(WindowTrace4096({.side = Side::kKey, .bits = 3, .granularity = 11},
                            golden),
            golden);
}

TEST(PivotalContextTest, TraceWithoutPivotalContext) {
  PivotalContextOptions options;
  options.set_ratio(0);
  const auto golden = Trace({}, 0, 31, 10);
  EXPECT_EQ(WindowTrace4096(kTwoBitKeys, golden, options), golden);
}

// A per-token format would take single tokens; KVmix gives it 32 at a time.
TEST(PivotalContextTest, PerTokenFormatsLeaveInGroupsOf32) {
  const auto golden = Trace({416, 65, 34}, 3, 34, 10);
  EXPECT_EQ(WindowTrace4096({.side = Side::kValue, .bits = 2, .granularity = 1},
                            golden),
            golden);
}

TEST(PivotalContextTest, GroupOfOneLetsPerTokenFormatsLeaveOneByOne) {
  PivotalContextOptions options;
  options.set_group(1);
  ASSERT_OK_AND_ASSIGN(const auto policy, Make(options));
  EXPECT_EQ(policy->TokensToQuantize({.side = Side::kValue,
                                      .bits = 2,
                                      .granularity = 1,
                                      .window_tokens = 100}),
            90);
}

// int(0.29 * 100) is 28 in doubles: the product is 28.999999999999996.
TEST(PivotalContextTest, KeepsWhatTheDoubleProductTruncatesTo) {
  PivotalContextOptions options;
  options.set_ratio(0.29);
  options.set_group(1);
  ASSERT_OK_AND_ASSIGN(const auto policy, Make(options));
  EXPECT_EQ(policy->TokensToQuantize({.side = Side::kValue,
                                      .bits = 2,
                                      .granularity = 1,
                                      .window_tokens = 100}),
            72);
}

// Tokens of a window of 1000 that stay.
int64_t Kept(const PivotalContextOptions& options, int bits) {
  PivotalContextOptions single = options;
  single.set_group(1);
  return 1000 - (*Make(single))
                    ->TokensToQuantize({.side = Side::kValue,
                                        .bits = bits,
                                        .granularity = 1,
                                        .window_tokens = 1000});
}

TEST(PivotalContextTest, RatiosOfPaperAndReleasedCode) {
  PivotalContextOptions options;
  EXPECT_EQ(Kept(options, 2), 100);
  EXPECT_EQ(Kept(options, 3), 200);
  EXPECT_EQ(Kept(options, 4), 200);
  options.set_ratios(PivotalContextOptions::RELEASED);
  EXPECT_EQ(Kept(options, 1), 100);
  EXPECT_EQ(Kept(options, 2), 200);
  EXPECT_EQ(Kept(options, 3), 200);
  EXPECT_EQ(Kept(options, 4), 300);
}

TEST(PivotalContextTest, OwnRatiosTakePrecedence) {
  PivotalContextOptions options;
  (*options.mutable_ratio_by_bits())[3] = 0.5;
  (*options.mutable_ratio_by_bits())[8] = 0;
  EXPECT_EQ(Kept(options, 2), 100);
  EXPECT_EQ(Kept(options, 3), 500);
  EXPECT_EQ(Kept(options, 8), 0);
}

TEST(PivotalContextTest, BitsWithoutARatioAreRefusedWithTheWayOut) {
  ASSERT_OK_AND_ASSIGN(const auto policy, Make());
  EXPECT_OK(policy->Validate({.bits = 2}));
  EXPECT_THAT(policy->Validate({.side = Side::kValue, .bits = 8}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("no ratio for 8-bit values; it has one for 2, "
                                 "3, 4 bits; add ratio_by_bits { key: 8")));
}

TEST(PivotalContextTest, OptionsOutOfRangeAreRefused) {
  PivotalContextOptions options;
  options.set_ratio(1.5);
  EXPECT_THAT(
      Make(options).status(),
      StatusIs(absl::StatusCode::kInvalidArgument,
               HasSubstr("options.ratio is 1.5 but must be in [0, 1]")));
  options.set_ratio(0.1);
  (*options.mutable_ratio_by_bits())[3] = 0.1;
  EXPECT_THAT(
      Make(options).status(),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("are both set")));
  options.clear_ratio();
  (*options.mutable_ratio_by_bits())[3] = -0.1;
  EXPECT_THAT(Make(options).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("options.ratio_by_bits[3] is -0.1")));
  options.Clear();
  options.set_group(-1);
  EXPECT_THAT(Make(options).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("options.group is -1")));
  options.Clear();
  options.set_sink_tokens(-4);
  EXPECT_THAT(Make(options).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("options.sink_tokens is -4")));
}

TEST(PivotalContextTest, QuantizesBeforeAttention) {
  PivotalContextOptions options;
  options.set_sink_tokens(4);
  ASSERT_OK_AND_ASSIGN(const auto policy, Make(options));
  EXPECT_EQ(policy->flush_order(), FlushOrder::kBeforeAttention);
  EXPECT_EQ(policy->sink_tokens(), 4);
}

}  // namespace
}  // namespace kvmix
