#include "models/generate.h"

#include <algorithm>
#include <vector>

#include "kvmix/base/status_matchers.h"
#include "models/test_model.h"

namespace kvmix {
namespace {

using ::absl::StatusCode;
using ::kvmix::testing::FullPrecisionCache;
using ::kvmix::testing::Load;
using ::kvmix::testing::RandomTokens;
using ::kvmix::testing::RandomWeights;
using ::kvmix::testing::SmallConfig;
using ::kvmix::testing::StatusIs;
using ::testing::HasSubstr;

Generation GenerateText(Transformer& model, const std::vector<int32_t>& prompt,
                        const GenerateOptions& options) {
  const auto cache = FullPrecisionCache(model);
  std::vector<int32_t> seen;
  auto result = Generate(model, prompt, *cache, options,
                         [&](int32_t token) { seen.push_back(token); });
  EXPECT_OK(result.status());
  EXPECT_EQ(seen, result->tokens);
  return *std::move(result);
}

TEST(GenerateTest, GreedyTokensAreThoseOfOnePassOverTheWholeText) {
  const ModelConfig config = SmallConfig();
  const auto model = Load(config, RandomWeights(config));
  const auto prompt = RandomTokens(config, 20);
  const Generation generation =
      GenerateText(*model, prompt, {.max_new_tokens = 15, .prefill_chunk = 7});
  ASSERT_EQ(generation.tokens.size(), 15);
  EXPECT_EQ(generation.decode_passes, 14);
  EXPECT_FALSE(generation.ended);

  std::vector<int32_t> text = prompt;
  text.insert(text.end(), generation.tokens.begin(), generation.tokens.end());
  const auto cache = FullPrecisionCache(*model);
  const std::vector<float> logits =
      testing::Logits(*model, {{.tokens = text, .cache = cache.get()}})[0];
  for (size_t i = 0; i < generation.tokens.size(); ++i) {
    const float* row = logits.data() + (prompt.size() - 1 + i) * 80;
    EXPECT_EQ(generation.tokens[i], std::max_element(row, row + 80) - row) << i;
  }
}

TEST(GenerateTest, StopsAtAnEndTokenWhichItLeavesOut) {
  ModelConfig config = SmallConfig();
  const RandomWeights weights(config);
  const auto prompt = RandomTokens(config, 20);
  const auto free =
      GenerateText(*Load(config, weights), prompt, {.max_new_tokens = 10});
  config.eos_ids = {free.tokens[4]};
  const auto ended =
      GenerateText(*Load(config, weights), prompt, {.max_new_tokens = 10});
  EXPECT_TRUE(ended.ended);
  const auto end =
      std::find(free.tokens.begin(), free.tokens.end(), free.tokens[4]);
  EXPECT_EQ(ended.tokens, std::vector<int32_t>(free.tokens.begin(), end));
}

TEST(GenerateTest, StopsWhereTheContextEnds) {
  const ModelConfig config = SmallConfig();
  const auto model = Load(config, RandomWeights(config));
  const auto generation =
      GenerateText(*model, RandomTokens(config, 250), {.max_new_tokens = 100});
  // Six tokens enter the cache; the seventh is what follows the last of them.
  EXPECT_EQ(generation.tokens.size(), 7);
}

TEST(GenerateTest, TheSameSeedGivesTheSameText) {
  const ModelConfig config = SmallConfig();
  const auto model = Load(config, RandomWeights(config));
  const auto prompt = RandomTokens(config, 20);
  const auto text = [&](uint64_t seed) {
    return GenerateText(*model, prompt,
                        {.max_new_tokens = 30,
                         .sampling = {.temperature = 1, .seed = seed}})
        .tokens;
  };
  EXPECT_EQ(text(1), text(1));
  EXPECT_NE(text(1), text(2));
}

TEST(GenerateTest, BadRequestsAreRefused) {
  const ModelConfig config = SmallConfig();
  const auto model = Load(config, RandomWeights(config));
  const auto cache = FullPrecisionCache(*model);
  GenerateOptions options;
  EXPECT_THAT(Generate(*model, {}, *cache, options, nullptr),
              StatusIs(StatusCode::kInvalidArgument,
                       HasSubstr("the prompt has no tokens")));
  options.max_new_tokens = 0;
  EXPECT_THAT(
      Generate(*model, {1}, *cache, options, nullptr),
      StatusIs(StatusCode::kInvalidArgument, HasSubstr("max_new_tokens is 0")));
}

}  // namespace
}  // namespace kvmix
