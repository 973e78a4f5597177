#include "models/sampler.h"

#include <cmath>
#include <limits>
#include <vector>

#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::kvmix::testing::StatusIs;
using ::testing::HasSubstr;

std::vector<int> Counts(const SamplingOptions& options,
                        const std::vector<float>& logits, int draws) {
  auto sampler = Sampler::Create(options);
  EXPECT_OK(sampler.status());
  std::vector<int> counts(logits.size());
  for (int i = 0; i < draws; ++i) {
    const auto token = sampler->Next(logits);
    EXPECT_OK(token.status());
    ++counts[*token];
  }
  return counts;
}

TEST(SamplerTest, GreedyTakesTheMostLikelyAndOfEqualsTheFirst) {
  EXPECT_EQ(Counts({}, {1, 3, 2, 3}, 10), (std::vector<int>{0, 10, 0, 0}));
}

TEST(SamplerTest, FrequenciesFollowTheSoftmaxAtItsTemperature) {
  const std::vector<float> logits = {0, 1, 2, -1};
  constexpr int kDraws = 20000;
  for (const double temperature : {0.5, 1.0, 2.0}) {
    const auto counts =
        Counts({.temperature = temperature, .seed = 3}, logits, kDraws);
    double sum = 0;
    for (const float x : logits) sum += std::exp(x / temperature);
    for (size_t i = 0; i < logits.size(); ++i) {
      const double p = std::exp(logits[i] / temperature) / sum;
      EXPECT_NEAR(counts[i], kDraws * p,
                  5 * std::sqrt(kDraws * p * (1 - p)) + 1)
          << "token " << i << " at temperature " << temperature;
    }
  }
}

TEST(SamplerTest, TopKKeepsTheKMostLikely) {
  const auto counts =
      Counts({.temperature = 5, .top_k = 2, .seed = 1}, {1, 4, 3, 2, 3}, 1000);
  EXPECT_EQ(counts[0] + counts[3] + counts[4], 0);  // of equals, the first
  EXPECT_GT(counts[1], 0);
  EXPECT_GT(counts[2], 0);
}

TEST(SamplerTest, TopPKeepsTheFewestWhoseProbabilitiesReachP) {
  // Probabilities 0.5, 0.3, 0.15, 0.05.
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f),
                                     std::log(0.15f), std::log(0.05f)};
  const auto tokens_kept = [&](double top_p) {
    const auto counts =
        Counts({.temperature = 1, .top_p = top_p, .seed = 1}, logits, 2000);
    return counts.size() -
           static_cast<size_t>(std::count(counts.begin(), counts.end(), 0));
  };
  EXPECT_EQ(tokens_kept(0.4), 1);
  EXPECT_EQ(tokens_kept(0.7), 2);
  EXPECT_EQ(tokens_kept(0.9), 3);
  EXPECT_EQ(tokens_kept(1), 4);
}

TEST(SamplerTest, SameSeedAndStreamGiveTheSameTokens) {
  const std::vector<float> logits(100, 0.0f);
  const auto draw = [&](uint64_t seed, uint64_t stream) {
    auto sampler =
        Sampler::Create({.temperature = 1, .seed = seed, .stream = stream});
    std::vector<int32_t> tokens;
    for (int i = 0; i < 50; ++i) tokens.push_back(*sampler->Next(logits));
    return tokens;
  };
  EXPECT_EQ(draw(1, 2), draw(1, 2));
  EXPECT_NE(draw(1, 2), draw(1, 3));
  EXPECT_NE(draw(1, 2), draw(2, 2));
}

TEST(SamplerTest, ForbiddenTokensAreNeverDrawn) {
  const float forbidden = -std::numeric_limits<float>::infinity();
  const auto counts =
      Counts({.temperature = 1}, {forbidden, 0, forbidden}, 100);
  EXPECT_EQ(counts, (std::vector<int>{0, 100, 0}));
}

TEST(SamplerTest, BadOptionsAndLogitsAreRefused) {
  using absl::StatusCode;
  EXPECT_THAT(
      Sampler::Create({.temperature = -1}),
      StatusIs(StatusCode::kInvalidArgument, HasSubstr("temperature is -1")));
  EXPECT_THAT(Sampler::Create({.top_k = -1}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("top_k is -1")));
  EXPECT_THAT(
      Sampler::Create({.top_p = 1.5}),
      StatusIs(StatusCode::kInvalidArgument, HasSubstr("top_p is 1.5")));
  EXPECT_THAT(Sampler::Create({.top_p = 0}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("top_p is 0")));
  auto sampler = Sampler::Create({});
  ASSERT_OK(sampler.status());
  EXPECT_THAT(sampler->Next({}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("no logits")));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(sampler->Next(std::vector<float>{0, nan}),
              StatusIs(StatusCode::kInvalidArgument,
                       HasSubstr("logit of token 1 is nan")));
}

}  // namespace
}  // namespace kvmix
