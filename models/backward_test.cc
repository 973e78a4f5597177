#include "models/backward.h"

#include <cmath>
#include <map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/base/random.h"
#include "kvmix/base/status_matchers.h"
#include "models/test_model.h"

namespace kvmix {
namespace {

using ::absl::StatusCode;
using ::kvmix::testing::Load;
using ::kvmix::testing::RandomTokens;
using ::kvmix::testing::RandomWeights;
using ::kvmix::testing::SmallConfig;
using ::kvmix::testing::StatusIs;
using ::testing::HasSubstr;

const SignalSet kEverything = {Signal::kKeyStates,
                               Signal::kValueStates,
                               Signal::kKeyStateGradient,
                               Signal::kValueStateGradient,
                               Signal::kKeyProjectionGradient,
                               Signal::kValueProjectionGradient,
                               Signal::kQueryStates,
                               Signal::kKeyProjection,
                               Signal::kValueProjection};

struct Recorded {
  std::vector<float> keys, values, dkeys, dvalues, dkey_weights, dvalue_weights,
      queries, key_weights, value_weights;
  bool operator==(const Recorded&) const = default;
};

struct Result {
  double loss = 0;
  std::vector<int> order;
  std::map<int, Recorded> layers;
};

Result Trace(Transformer& model, const std::vector<int32_t>& tokens,
             const TraceOptions& options) {
  Result result;
  const auto loss =
      TraceLayers(model, tokens, options, [&](const LayerTrace& trace) {
        const int64_t heads = int64_t{trace.num_kv_heads} * trace.head_dim;
        const auto copy = [](const float* x, int64_t size) {
          return x ? std::vector<float>(x, x + size) : std::vector<float>();
        };
        const int64_t states = trace.num_tokens * heads;
        const int64_t weights = heads * trace.hidden_size;
        result.order.push_back(trace.layer);
        result.layers[trace.layer] = {
            copy(trace.key_states, states),
            copy(trace.value_states, states),
            copy(trace.key_state_gradient, states),
            copy(trace.value_state_gradient, states),
            copy(trace.key_projection_gradient, weights),
            copy(trace.value_projection_gradient, weights),
            copy(trace.query_states,
                 trace.num_tokens * trace.num_heads * trace.head_dim),
            copy(trace.key_projection, weights),
            copy(trace.value_projection, weights)};
        return absl::OkStatus();
      });
  EXPECT_OK(loss.status());
  result.loss = loss.value_or(0);
  return result;
}

// All of a model's tokens being the same, layer 0's keys differ by their
// positions alone.
TEST(BackwardTest, TheRotationOfATraceTakesPositionsOutOfKeys) {
  ModelConfig plain = SmallConfig(), normed = SmallConfig(),
              yarn = SmallConfig(), llama3 = SmallConfig();
  normed.family = "qwen3";
  normed.qk_norm = true;
  yarn.rope_scaling.type = RopeScalingType::kYarn;
  yarn.rope_scaling.factor = 4;
  yarn.rope_scaling.original_max_position = 64;
  yarn.rope_scaling.attention_factor = 1.25f;
  llama3.rope_scaling.type = RopeScalingType::kLlama3;
  llama3.rope_scaling.factor = 8;
  llama3.rope_scaling.original_max_position = 64;
  for (const ModelConfig& config : {plain, normed, yarn, llama3}) {
    const auto model = Load(config, RandomWeights(config));
    const int64_t count = 100, row = int64_t{2} * config.head_dim;
    const std::vector<int32_t> tokens(count, 17);
    const auto loss = TraceLayers(
        *model, tokens, {.signals = {Signal::kKeyStates}},
        [&](const LayerTrace& trace) {
          if (trace.layer != 0) return absl::OkStatus();
          std::vector<float> x(row * count);  // [G * D, T]
          for (int64_t t = 0; t < count; ++t)
            for (int64_t c = 0; c < row; ++c)
              x[c * count + t] = trace.key_states[t * row + c];
          float spread = 0, spread_turned = 0;
          for (int head = 0; head < 2; ++head) {
            float* keys = x.data() + head * config.head_dim * count;
            const auto widest = [&] {
              float widest = 0;
              for (int64_t i = 0; i < config.head_dim * count; ++i)
                widest = std::max(widest,
                                  std::fabs(keys[i] - keys[i / count * count]));
              return widest;
            };
            spread_turned = std::max(spread_turned, widest());
            trace.key_rotation->Unrotate(0, count, keys, count);
            spread = std::max(spread, widest());
          }
          EXPECT_GT(spread_turned, 0.5f);
          EXPECT_LT(spread, 1e-5f);
          return absl::OkStatus();
        });
    EXPECT_OK(loss.status());
  }
}

double Dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

// Every kind of layer at once: bias, head norms, a window, grouped heads.
ModelConfig AllFeatures() {
  ModelConfig config = SmallConfig();
  config.qkv_bias = true;
  config.qk_norm = true;
  config.sliding_window = 30;
  return config;
}

// d loss / d parameter along `direction`: central differences of two steps,
// extrapolated (Richardson), so that curvature does not need tiny steps.
double Slope(const ModelConfig& config, RandomWeights& weights,
             const std::string& name, const std::vector<float>& direction,
             const std::vector<int32_t>& tokens, const TraceOptions& options) {
  constexpr float kStep = 0.02f;
  const std::vector<float> at = weights[name];
  const auto loss = [&](float step) {
    for (size_t i = 0; i < at.size(); ++i)
      weights[name][i] = at[i] + step * direction[i];
    const double result = Trace(*Load(config, weights), tokens, options).loss;
    weights[name] = at;
    return result;
  };
  const double wide = (loss(kStep) - loss(-kStep)) / (2 * kStep);
  const double narrow = (loss(kStep / 2) - loss(-kStep / 2)) / kStep;
  return (4 * narrow - wide) / 3;
}

TEST(BackwardTest, ProjectionGradientsMatchFiniteDifferences) {
  for (const ModelConfig& config : {SmallConfig(), AllFeatures()}) {
    RandomWeights weights(config);
    // More tokens than one tile of the attention.
    const auto tokens = RandomTokens(config, 110);
    const Result result =
        Trace(*Load(config, weights), tokens, {.signals = kEverything});
    CounterRandom random(5, 0);
    for (int layer = 0; layer < config.num_layers; ++layer) {
      for (const bool key : {true, false}) {
        const std::string name =
            absl::StrCat("model.layers.", layer, ".self_attn.", key ? "k" : "v",
                         "_proj.weight");
        const std::vector<float>& gradient =
            key ? result.layers.at(layer).dkey_weights
                : result.layers.at(layer).dvalue_weights;
        const double norm = std::sqrt(Dot(gradient, gradient));
        // Along the gradient, and along a random direction of length 1.
        std::vector<float> along = gradient, across(gradient.size());
        for (float& x : along) x = static_cast<float>(x / norm);
        for (float& x : across) {
          x = static_cast<float>(random.Normal() /
                                 std::sqrt(static_cast<double>(across.size())));
        }
        for (const auto& direction : {along, across}) {
          EXPECT_NEAR(Slope(config, weights, name, direction, tokens, {}),
                      Dot(gradient, direction), 3e-3 * norm)
              << name;
        }
      }
    }
  }
}

// A bias adds the same to every token's projection, so its gradient is the sum
// of theirs; for values that is the sum of the state gradients.
TEST(BackwardTest, ValueStateGradientsSumToTheBiasGradient) {
  ModelConfig config = SmallConfig();
  config.qkv_bias = true;
  RandomWeights weights(config);
  const auto tokens = RandomTokens(config, 40);
  const Result result =
      Trace(*Load(config, weights), tokens, {.signals = kEverything});
  for (int layer = 0; layer < config.num_layers; ++layer) {
    std::vector<float> sum(32);
    const std::vector<float>& dvalues = result.layers.at(layer).dvalues;
    for (size_t i = 0; i < dvalues.size(); ++i) sum[i % 32] += dvalues[i];
    const double norm = std::sqrt(Dot(sum, sum));
    std::vector<float> direction = sum;
    for (float& x : direction) x = static_cast<float>(x / norm);
    EXPECT_NEAR(
        Slope(config, weights,
              absl::StrCat("model.layers.", layer, ".self_attn.v_proj.bias"),
              direction, tokens, {}),
        norm, 3e-3 * norm)
        << "layer " << layer;
  }
}

TEST(BackwardTest, ResultsDoNotDependOnTheNumberOfThreads) {
  const ModelConfig config = AllFeatures();
  const RandomWeights weights(config);
  const auto tokens = RandomTokens(config, 230);
  const Result expected =
      Trace(*Load(config, weights, 1), tokens, {.signals = kEverything});
  for (const int num_threads : {2, 3}) {
    const Result result = Trace(*Load(config, weights, num_threads), tokens,
                                {.signals = kEverything});
    EXPECT_EQ(result.loss, expected.loss);
    EXPECT_EQ(result.layers, expected.layers) << num_threads << " threads";
  }
}

TEST(BackwardTest, OnlyTheAskedSignalsAreShown) {
  const ModelConfig config = SmallConfig();
  const auto model = Load(config, RandomWeights(config));
  const auto tokens = RandomTokens(config, 50);
  const Result all = Trace(*model, tokens, {.signals = kEverything});
  EXPECT_EQ(all.order, (std::vector<int>{2, 1, 0}));

  const Result forward =
      Trace(*model, tokens, {.signals = {Signal::kKeyStates}});
  EXPECT_EQ(forward.order, (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(forward.loss, all.loss);

  const Result one =
      Trace(*model, tokens, {.signals = {Signal::kValueProjectionGradient}});
  for (int layer = 0; layer < 3; ++layer) {
    Recorded expected;
    expected.keys = all.layers.at(layer).keys;
    EXPECT_EQ(forward.layers.at(layer), expected);
    expected = {};
    expected.dvalue_weights = all.layers.at(layer).dvalue_weights;
    EXPECT_EQ(one.layers.at(layer), expected);
  }
}

// Of the first layer: queries are rotated like keys, so that where both have
// the same weights they are the same.
TEST(BackwardTest, QueriesAndProjectionsAreThoseOfTheModel) {
  ModelConfig config = SmallConfig();
  config.num_kv_heads = config.num_heads;
  config.sliding_window = 30;
  RandomWeights weights(config);
  const std::string layer = "model.layers.0.self_attn.";
  weights[layer + "q_proj.weight"] = weights[layer + "k_proj.weight"];
  const auto model = Load(config, weights);
  for (const bool gradients : {false, true}) {
    SignalSet signals = {Signal::kKeyStates, Signal::kQueryStates,
                         Signal::kKeyProjection, Signal::kValueProjection};
    if (gradients) signals.Add({Signal::kValueStateGradient});
    const Recorded first =
        Trace(*model, RandomTokens(config, 50), {.signals = signals})
            .layers.at(0);
    EXPECT_FALSE(first.queries.empty());
    EXPECT_EQ(first.queries, first.keys);
    EXPECT_EQ(first.key_weights, weights[layer + "k_proj.weight"]);
    EXPECT_EQ(first.value_weights, weights[layer + "v_proj.weight"]);
  }
  const auto shape = [&](const LayerTrace& trace) {
    EXPECT_EQ(trace.num_heads, config.num_heads);
    EXPECT_EQ(trace.sliding_window, 30);
    return absl::OkStatus();
  };
  EXPECT_OK(TraceLayers(*model, RandomTokens(config, 8), {}, shape));
}

TEST(BackwardTest, LabelShiftTwoPredictsTheTokenAfterNext) {
  const ModelConfig config = SmallConfig();
  const auto model = Load(config, RandomWeights(config));
  const auto tokens = RandomTokens(config, 20);
  const auto cache = testing::FullPrecisionCache(*model);
  const std::vector<float> logits =
      testing::Logits(*model, {{.tokens = tokens, .cache = cache.get()}})[0];
  for (const int shift : {1, 2}) {
    double loss = 0;
    for (int t = 0; t + shift < 20; ++t) {
      double sum = 0;
      for (int v = 0; v < 80; ++v) sum += std::exp(double{logits[t * 80 + v]});
      loss += std::log(sum) - logits[t * 80 + tokens[t + shift]];
    }
    // The cache rounds keys and values to half.
    EXPECT_NEAR(Trace(*model, tokens, {.label_shift = shift}).loss,
                loss / (20 - shift), 1e-3);
  }
}

TEST(BackwardTest, BadPromptsAreRefused) {
  const ModelConfig config = SmallConfig();
  const auto model = Load(config, RandomWeights(config));
  const auto status = [&](const std::vector<int32_t>& tokens,
                          const TraceOptions& options) {
    return TraceLayers(*model, tokens, options,
                       [](const LayerTrace&) { return absl::OkStatus(); })
        .status();
  };
  EXPECT_THAT(status({1}, {.prompt = 4}),
              StatusIs(StatusCode::kInvalidArgument,
                       HasSubstr("prompt 4 has 1 tokens but a loss with "
                                 "label_shift 1 needs at least 2")));
  EXPECT_THAT(
      status({1, 2}, {.label_shift = 2}),
      StatusIs(StatusCode::kInvalidArgument, HasSubstr("needs at least 3")));
  EXPECT_THAT(
      status({1, 2}, {.label_shift = 0}),
      StatusIs(StatusCode::kInvalidArgument, HasSubstr("label_shift is 0")));
  EXPECT_THAT(status({1, 80}, {}),
              StatusIs(StatusCode::kInvalidArgument,
                       HasSubstr("prompt 0: token 1 is 80")));
  EXPECT_THAT(status(RandomTokens(config, 257), {}),
              StatusIs(StatusCode::kOutOfRange,
                       HasSubstr("the model's context is 256")));
}

TEST(BackwardTest, OverflowIsAnErrorNotANumber) {
  const ModelConfig config = SmallConfig();
  RandomWeights weights(config);
  for (float& x : weights["lm_head.weight"]) x = 3e38f;
  const auto model = Load(config, weights);
  EXPECT_THAT(TraceLayers(*model, RandomTokens(config, 8), {},
                          [](const LayerTrace&) { return absl::OkStatus(); }),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("loss is")));
}

TEST(BackwardTest, TheObserversErrorEndsTheTrace) {
  const ModelConfig config = SmallConfig();
  const auto model = Load(config, RandomWeights(config));
  EXPECT_THAT(
      TraceLayers(
          *model, RandomTokens(config, 8), {.signals = kEverything},
          [](const LayerTrace&) { return absl::CancelledError("enough"); }),
      StatusIs(StatusCode::kCancelled, HasSubstr("enough")));
}

}  // namespace
}  // namespace kvmix
