#include "models/transformer.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "attention/test_policies.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "models/test_model.h"

namespace kvmix {
namespace {

using ::absl::StatusCode;
using ::kvmix::testing::FullPrecisionCache;
using ::kvmix::testing::Load;
using ::kvmix::testing::Logits;
using ::kvmix::testing::RandomTokens;
using ::kvmix::testing::RandomWeights;
using ::kvmix::testing::SmallConfig;
using ::kvmix::testing::StatusIs;
using ::testing::HasSubstr;

// Shapes of the families; the values are compared with PyTorch in
// families_test.
std::vector<ModelConfig> Configs() {
  ModelConfig llama = SmallConfig();
  ModelConfig mistral = SmallConfig();
  mistral.family = "mistral";
  mistral.sliding_window = 20;
  ModelConfig qwen2 = SmallConfig();
  qwen2.family = "qwen2";
  qwen2.qkv_bias = true;
  qwen2.tie_embeddings = true;
  ModelConfig qwen3 = SmallConfig();
  qwen3.family = "qwen3";
  qwen3.qk_norm = true;
  return {llama, mistral, qwen2, qwen3};
}

// |a - b| / |b| in the Euclidean norm.
double RelativeError(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double error = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    error += std::pow(double{a[i]} - b[i], 2);
    size += std::pow(double{b[i]}, 2);
  }
  return std::sqrt(error / size);
}

std::vector<float> LogitsOf(Transformer& model,
                            const std::vector<int32_t>& tokens) {
  const auto cache = FullPrecisionCache(model);
  return Logits(model, {{.tokens = tokens, .cache = cache.get()}})[0];
}

TEST(TransformerTest, ResultsDoNotDependOnTheNumberOfThreads) {
  for (const ModelConfig& config : Configs()) {
    const RandomWeights weights(config);
    const auto tokens = RandomTokens(config, 120);
    const auto one = Load(config, weights, 1);
    const std::vector<float> expected = LogitsOf(*one, tokens);
    for (const int num_threads : {2, 3}) {
      const auto model = Load(config, weights, num_threads);
      EXPECT_EQ(LogitsOf(*model, tokens), expected)
          << config.family << ", " << num_threads << " threads";
    }
  }
}

// A plan that says the same of every KV head is the layers' plan; one that
// says something else of one head is another.
TEST(TransformerTest, LogitsOfAPlanForKvHeadsThatAreAlikeAreThoseOfTheLayers) {
  const ModelConfig config = SmallConfig();
  const RandomWeights weights(config);
  const auto model = Load(config, weights, 2);
  const auto tokens = RandomTokens(config, 100);
  const auto logits = [&](const CachePlan& plan) {
    const auto cache =
        KvCache::Create(model->cache_shape(), plan,
                        std::make_shared<testing::KeepRecent>(
                            testing::KeepRecentOptions{.keep = 3}),
                        std::make_shared<testing::KeepAll>());
    EXPECT_OK(cache.status());
    std::vector<float> all;
    for (int64_t first = 0; first < 100; first += 25) {
      const std::vector<int32_t> chunk(tokens.begin() + first,
                                       tokens.begin() + first + 25);
      const std::vector<float> next =
          Logits(*model, {{.tokens = chunk, .cache = cache->get()}})[0];
      all.insert(all.end(), next.begin(), next.end());
    }
    return all;
  };
  CachePlan layers, heads;
  for (int i = 0; i < config.num_layers; ++i) {
    QuantFormat format;
    format.set_quantizer("group_affine");
    format.set_bits(2 + i);
    format.set_group_size(16);
    format.set_axis(QuantFormat::PER_CHANNEL);
    *layers.add_layer()->mutable_key() = format;
    LayerPlan& layer = *heads.add_layer();
    *layer.add_key_head() = *layer.add_key_head() = format;
    format.set_axis(QuantFormat::PER_TOKEN);
    *layers.mutable_layer(i)->mutable_value() = format;
    *layer.add_value_head() = *layer.add_value_head() = format;
  }
  const std::vector<float> expected = logits(layers);
  EXPECT_EQ(logits(heads), expected);
  heads.mutable_layer(0)->mutable_key_head(1)->set_bits(8);
  EXPECT_NE(logits(heads), expected);
}

// Keys in 8 bits are about as close to full precision before RoPE as after it,
// with every scaling of RoPE, in chunks and token by token.
TEST(TransformerTest, KeysBeforeRopeGiveTheLogitsOfFullPrecision) {
  std::vector<ModelConfig> configs = Configs();
  configs.push_back(SmallConfig());
  RopeScaling& yarn = configs.back().rope_scaling;
  yarn.type = RopeScalingType::kYarn;
  yarn.factor = 4;
  yarn.original_max_position = 64;
  yarn.attention_factor = 1.25f;
  for (const ModelConfig& config : configs) {
    const auto model = Load(config, RandomWeights(config));
    const auto tokens = RandomTokens(config, 120);
    const std::vector<float> exact = LogitsOf(*model, tokens);
    const auto error = [&](const char* quantizer, int64_t chunk_tokens) {
      Component component;
      component.set_name(quantizer);
      const auto made = Registry<Quantizer>::Get().Make(component, "quantizer");
      EXPECT_OK(made);
      const auto format = (*made)->FormatFor(Side::kKey, 8, config.head_dim);
      EXPECT_OK(format);
      CachePlan plan;
      for (int i = 0; i < config.num_layers; ++i) {
        *plan.add_layer()->mutable_key() = *format;
        plan.mutable_layer(i)->mutable_value()->set_bits(16);
      }
      const auto cache =
          KvCache::Create(model->cache_shape(), plan,
                          std::make_shared<testing::KeepRecent>(
                              testing::KeepRecentOptions{.sinks = 3}),
                          std::make_shared<testing::KeepAll>());
      EXPECT_OK(cache.status());
      std::vector<float> all;
      for (int64_t first = 0; first < 120; first += chunk_tokens) {
        const std::vector<int32_t> chunk(tokens.begin() + first,
                                         tokens.begin() + first + chunk_tokens);
        const std::vector<float> next =
            Logits(*model, {{.tokens = chunk, .cache = cache->get()}})[0];
        all.insert(all.end(), next.begin(), next.end());
      }
      return RelativeError(all, exact);
    };
    for (const int64_t chunk : {24, 1}) {
      const double after = error("group_affine", chunk);
      EXPECT_GT(after, 1e-4);
      EXPECT_LT(after, 0.02);
      EXPECT_LT(error("pre_rope", chunk), 2 * after)
          << config.family << ", " << chunk << " tokens at once";
    }
  }
}

TEST(TransformerTest, ASequenceDoesNotDependOnTheRestOfItsBatch) {
  for (const ModelConfig& config : Configs()) {
    const auto model = Load(config, RandomWeights(config));
    std::vector<std::vector<int32_t>> sequences;
    std::vector<std::unique_ptr<KvCache>> caches;
    std::vector<Chunk> batch;
    for (const int64_t length : {1, 65, 30, 7}) {
      sequences.push_back(RandomTokens(config, length, length));
      caches.push_back(FullPrecisionCache(*model));
    }
    for (size_t i = 0; i < sequences.size(); ++i)
      batch.push_back({.tokens = sequences[i], .cache = caches[i].get()});
    const auto together = Logits(*model, batch);
    for (size_t i = 0; i < sequences.size(); ++i) {
      EXPECT_EQ(together[i], LogitsOf(*model, sequences[i]))
          << config.family << ", sequence " << i;
    }
  }
}

// Chunks give the same bits. A single token's attention has kernels of its own,
// which sum in another order; a last bit of float may then turn the rounding of
// a later layer's key or value to half, 2^-11 of its size.
TEST(TransformerTest, ChunksAndSingleTokensGiveTheLogitsOfOnePass) {
  for (const ModelConfig& config : Configs()) {
    const auto model = Load(config, RandomWeights(config));
    const auto tokens = RandomTokens(config, 90);
    const std::vector<float> expected = LogitsOf(*model, tokens);
    for (const size_t chunk : {1, 5, 7, 13, 33, 64}) {
      const auto cache = FullPrecisionCache(*model);
      std::vector<float> logits;
      for (size_t first = 0; first < tokens.size(); first += chunk) {
        const auto part = Logits(
            *model,
            {{.tokens = absl::MakeConstSpan(tokens).subspan(first, chunk),
              .cache = cache.get()}});
        logits.insert(logits.end(), part[0].begin(), part[0].end());
      }
      if (chunk > 1) {
        EXPECT_EQ(logits, expected) << config.family << ", chunks of " << chunk;
        continue;
      }
      EXPECT_LT(RelativeError(logits, expected), 0x1p-11) << config.family;
    }
  }
}

TEST(TransformerTest, OnlyTheWantedLogitsAreShownInOrder) {
  const ModelConfig config = SmallConfig();
  const auto model = Load(config, RandomWeights(config));
  const auto tokens = RandomTokens(config, 9);
  const std::vector<float> all = LogitsOf(*model, tokens);
  const auto last = FullPrecisionCache(*model);
  const auto none = FullPrecisionCache(*model);
  const auto every = FullPrecisionCache(*model);
  std::vector<std::pair<int, int64_t>> shown;
  EXPECT_OK(model->Forward(
      {{.tokens = tokens, .cache = last.get(), .logits = WantLogits::kLast},
       {.tokens = tokens, .cache = none.get(), .logits = WantLogits::kNone},
       {.tokens = tokens, .cache = every.get(), .logits = WantLogits::kAll}},
      [&](int chunk, int64_t first, int64_t rows, const float* logits) {
        for (int64_t r = 0; r < rows; ++r) {
          shown.push_back({chunk, first + r});
          EXPECT_TRUE(
              std::equal(logits + r * config.vocab_size,
                         logits + (r + 1) * config.vocab_size,
                         all.begin() + (first + r) * config.vocab_size));
        }
        return absl::OkStatus();
      }));
  std::vector<std::pair<int, int64_t>> expected = {{0, 8}};
  for (int64_t t = 0; t < 9; ++t) expected.push_back({2, t});
  EXPECT_EQ(shown, expected);
}

TEST(TransformerTest, ASlidingWindowForgetsOlderTokens) {
  ModelConfig config = SmallConfig();
  config.num_layers = 1;  // each layer lets a token see one window further back
  config.family = "mistral";
  config.sliding_window = 10;
  const auto model = Load(config, RandomWeights(config));
  auto tokens = RandomTokens(config, 40);
  const std::vector<float> before = LogitsOf(*model, tokens);
  tokens[20] = (tokens[20] + 1) % config.vocab_size;
  const std::vector<float> after = LogitsOf(*model, tokens);
  for (int64_t t = 0; t < 40; ++t) {
    const bool same = std::equal(before.begin() + t * config.vocab_size,
                                 before.begin() + (t + 1) * config.vocab_size,
                                 after.begin() + t * config.vocab_size);
    EXPECT_EQ(same, t < 20 || t >= 30) << "token " << t;
  }
}

TEST(TransformerTest, WeightBytesCountTiedEmbeddingsOnce) {
  ModelConfig config = SmallConfig();
  config.vocab_size = 96;
  config.tie_embeddings = true;
  const int64_t tied = Load(config, RandomWeights(config))->weight_bytes();
  config.tie_embeddings = false;
  const int64_t untied = Load(config, RandomWeights(config))->weight_bytes();
  // Rows of 48 inputs are padded to 64; with a bias of zeros.
  EXPECT_EQ(untied - tied, (96 * 64 + 96) * 4);
}

class TransformerErrorTest : public ::testing::Test {
 protected:
  absl::Status Run(const std::vector<int32_t>& tokens, KvCache* cache) {
    return model_->Forward({{.tokens = tokens, .cache = cache}}, Ignore);
  }
  static absl::Status Ignore(int, int64_t, int64_t, const float*) {
    return absl::OkStatus();
  }

  const ModelConfig config_ = SmallConfig();
  const std::unique_ptr<Transformer> model_ =
      Load(config_, RandomWeights(config_));
  const std::unique_ptr<KvCache> cache_ = FullPrecisionCache(*model_);
};

TEST_F(TransformerErrorTest, TokensOutsideTheVocabularyAreRefused) {
  EXPECT_THAT(Run({1, 2, 80}, cache_.get()),
              StatusIs(StatusCode::kInvalidArgument,
                       HasSubstr("batch[0].tokens[2] is 80 but must be in [0, "
                                 "80)")));
  EXPECT_THAT(Run({-1}, cache_.get()),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("is -1")));
  EXPECT_EQ(cache_->num_tokens(0), 0);
}

TEST_F(TransformerErrorTest, EmptyChunksAndNullOrSharedCachesAreRefused) {
  EXPECT_THAT(Run({}, cache_.get()), StatusIs(StatusCode::kInvalidArgument,
                                              HasSubstr("tokens is empty")));
  EXPECT_THAT(Run({1}, nullptr), StatusIs(StatusCode::kInvalidArgument,
                                          HasSubstr("cache is null")));
  const std::vector<int32_t> tokens = {1};
  EXPECT_THAT(model_->Forward({{.tokens = tokens, .cache = cache_.get()},
                               {.tokens = tokens, .cache = cache_.get()}},
                              Ignore),
              StatusIs(StatusCode::kInvalidArgument,
                       HasSubstr("batch[1].cache is also that of batch[0]")));
}

TEST_F(TransformerErrorTest, SequencesLongerThanTheContextAreRefused) {
  EXPECT_OK(Run(RandomTokens(config_, 250), cache_.get()));
  EXPECT_THAT(Run(RandomTokens(config_, 7), cache_.get()),
              StatusIs(StatusCode::kOutOfRange,
                       HasSubstr("would be 257 tokens long (250 in its cache) "
                                 "but the model's context is 256")));
  EXPECT_OK(Run(RandomTokens(config_, 6), cache_.get()));
}

TEST_F(TransformerErrorTest, ACacheOfAnotherShapeIsRefused) {
  ModelConfig other = config_;
  other.num_layers = 2;
  const auto other_model = Load(other, RandomWeights(other));
  const auto cache = FullPrecisionCache(*other_model);
  EXPECT_THAT(Run({1}, cache.get()),
              StatusIs(StatusCode::kInvalidArgument,
                       HasSubstr("is of 2 layers x 2 KV heads x 16 channels "
                                 "but the model has 3 x 2 x 16")));
}

TEST_F(TransformerErrorTest, ACacheThatAFailedPassLeftUnfinishedIsRefused) {
  const std::vector<float> states(2 * 16);
  ASSERT_OK(cache_->Append(0, 1, states.data(), states.data()));
  ASSERT_OK(cache_->FinishChunk(0));
  EXPECT_THAT(
      Run({1}, cache_.get()),
      StatusIs(StatusCode::kFailedPrecondition,
               HasSubstr("holds 1 tokens in layer 0 and 0 in layer 1")));
}

TEST_F(TransformerErrorTest, TheConsumersErrorEndsThePass) {
  const std::vector<int32_t> tokens = {1, 2};
  EXPECT_THAT(model_->Forward({{.tokens = tokens, .cache = cache_.get()}},
                              [](int, int64_t, int64_t, const float*) {
                                return absl::CancelledError("enough");
                              }),
              StatusIs(StatusCode::kCancelled, HasSubstr("enough")));
}

TEST_F(TransformerErrorTest, BadOptionsAndMissingWeightsAreRefused) {
  const RandomWeights weights(config_);
  EXPECT_THAT(
      Transformer::Load(config_, weights, {.num_threads = -1}),
      StatusIs(StatusCode::kInvalidArgument, HasSubstr("num_threads is -1")));
  ModelConfig deeper = config_;
  deeper.num_layers = 4;
  EXPECT_THAT(Transformer::Load(deeper, weights, {}),
              StatusIs(StatusCode::kNotFound, HasSubstr("model.layers.3")));
}

// Rounding to bf16 or 8 bits changes logits a little.
TEST_F(TransformerErrorTest, OtherComputeTypesComeClose) {
  const auto tokens = RandomTokens(config_, 60);
  const std::vector<float> expected = LogitsOf(*model_, tokens);
  for (const ComputeType compute :
       {ComputeType::kBFloat16, ComputeType::kInt8}) {
    const auto model =
        Transformer::Load(config_, RandomWeights(config_),
                          {.num_threads = 2, .compute = compute});
    ASSERT_OK(model.status());
    const std::vector<float> logits = LogitsOf(**model, tokens);
    const double error = RelativeError(logits, expected);
    EXPECT_GT(error, 1e-4) << ComputeTypeName(compute);
    EXPECT_LT(error, 0.08) << ComputeTypeName(compute);
  }
}

}  // namespace
}  // namespace kvmix
