// The formulas of the estimators, on traces whose answer is worked out by hand
// or by plain loops in double.
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/random.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/cache_plan.h"
#include "kvmix/importance/gradient_delta.pb.h"
#include "kvmix/importance/gradient_norm.pb.h"
#include "kvmix/importance/importance_estimator.h"
#include "kvmix/importance/leave_one_out.pb.h"
#include "kvmix/importance/state_quantizer.h"

namespace kvmix {
namespace {

QuantFormat Format(int bits, int group_size, QuantFormat::Axis axis) {
  QuantFormat format;
  format.set_bits(bits);
  if (bits == 16) return format;
  format.set_quantizer("group_affine");
  format.set_group_size(group_size);
  format.set_axis(axis);
  return format;
}

// Values per token in groups of 4, keys per channel in groups of `tokens`.
FormatChoices Formats(const std::vector<int>& bits, int tokens) {
  FormatChoices formats;
  for (int b : bits) {
    *formats.add_key() = Format(b, tokens, QuantFormat::PER_CHANNEL);
    *formats.add_value() = Format(b, 4, QuantFormat::PER_TOKEN);
  }
  return formats;
}

std::unique_ptr<ImportanceEstimator> Make(
    const std::string& name,
    const google::protobuf::Message* options = nullptr) {
  Component component;
  component.set_name(name);
  if (options != nullptr) component.mutable_options()->PackFrom(*options);
  auto made = Registry<ImportanceEstimator>::Get().Make(component,
                                                        "importance_estimator");
  EXPECT_OK(made);
  return *std::move(made);
}

// The profile of one layer from one prompt.
ImportanceProfile ProfileOf(ImportanceEstimator& estimator,
                            const LayerTrace& trace,
                            const FormatChoices& formats = {}) {
  EXPECT_OK(estimator.Start(
      {.num_layers = 1, .head_dim = trace.head_dim, .formats = &formats}));
  EXPECT_OK(estimator.Observe(trace));
  auto profile = estimator.Finish();
  EXPECT_OK(profile);
  return *profile;
}

std::vector<float> Normal(size_t size, uint64_t stream, float scale = 1) {
  CounterRandom random(/*seed=*/1, stream);
  std::vector<float> x(size);
  for (float& v : x) v = scale * static_cast<float>(random.Normal());
  return x;
}

// T = 2, G = 1, D = 8. One bit in a group from 0 to 4 becomes 0 or 4.
const std::vector<float> kStates = {0, 1, 3, 4, 4, 3, 1, 0,
                                    0, 1, 4, 4, 0, 0, 0, 0};
// What that adds to values, per token: 1 -> 0, 3 -> 4.
const std::vector<float> kValueError = {0, -1, 1, 0, 0, 1, -1, 0,
                                        0, -1, 0, 0, 0, 0, 0,  0};
const std::vector<float> kGradient = {9, 2,  5, 9, 9, 3, 10, 9,
                                      9, -6, 9, 9, 9, 9, 9,  9};

LayerTrace SmallTrace(const std::vector<float>& gradient) {
  return {.num_tokens = 2,
          .num_heads = 1,
          .num_kv_heads = 1,
          .head_dim = 8,
          .key_states = kStates.data(),
          .value_states = kStates.data(),
          .key_state_gradient = gradient.data(),
          .value_state_gradient = gradient.data()};
}

TEST(StateQuantizerTest, ErrorIsWhatIsReadMinusWhatWasThere) {
  ASSERT_OK_AND_ASSIGN(const StateQuantizer quantizer,
                       StateQuantizer::Make(Formats({1, 16}, 2), 8));
  const LayerTrace trace = SmallTrace(kStates);
  EXPECT_EQ(quantizer.Error(Side::kValue, 0, trace), kValueError);
  // Per channel a group of two tokens keeps both ends: no error.
  EXPECT_EQ(quantizer.Error(Side::kKey, 0, trace), std::vector<float>(16));
  EXPECT_EQ(quantizer.Error(Side::kValue, 1, trace), std::vector<float>(16));
}

// Against group-wise rounding written anew; scale and zero point are rounded to
// half, whence the tolerance.
TEST(StateQuantizerTest, KeysAreQuantizedPerChannelUpToTheLastWholeGroup) {
  constexpr int kTokens = 75, kHeads = 2, kDim = 32;  // 2 groups of 32 and 11
  const std::vector<float> x = Normal(kTokens * kHeads * kDim, 3);
  ASSERT_OK_AND_ASSIGN(const StateQuantizer quantizer,
                       StateQuantizer::Make(Formats({3}, 32), kDim));
  const std::vector<float> error = quantizer.Error(Side::kKey, 0,
                                                   {.num_tokens = kTokens,
                                                    .num_kv_heads = kHeads,
                                                    .head_dim = kDim,
                                                    .key_states = x.data()});
  for (int column = 0; column < kHeads * kDim; ++column) {
    const auto at = [&](int t) { return t * kHeads * kDim + column; };
    for (int group = 0; group < 2; ++group) {
      float low = INFINITY, high = -INFINITY;
      for (int t = 32 * group; t < 32 * group + 32; ++t) {
        low = std::min(low, x[at(t)]);
        high = std::max(high, x[at(t)]);
      }
      const float scale = (high - low) / 7;
      for (int t = 32 * group; t < 32 * group + 32; ++t) {
        const float read = low + scale * std::round((x[at(t)] - low) / scale);
        // A number between two codes may go either way.
        const float miss = std::abs(x[at(t)] + error[at(t)] - read);
        EXPECT_LT(std::min(miss, std::abs(miss - scale)), 0.01f);
        EXPECT_LT(std::abs(error[at(t)]), 0.5f * scale + 0.01f);
      }
    }
    for (int t = 64; t < kTokens; ++t) EXPECT_EQ(error[at(t)], 0);
  }
}

TEST(GradientDeltaTest, IsTheProductOfGradientAndError) {
  const LayerTrace trace = SmallTrace(kGradient);
  const FormatChoices formats = Formats({1}, 2);
  GradientDeltaOptions options;
  // Terms: -2, 5, 3, -10 of the first token, 6 of the second.
  const auto loss = [&](GradientDeltaOptions::Terms terms) {
    options.set_terms(terms);
    const ImportanceProfile profile =
        ProfileOf(*Make("gradient_delta", &options), trace, formats);
    EXPECT_EQ(profile.unit(), ImportanceProfile::NATS);
    EXPECT_EQ(profile.layer(0).key_loss(0), 0);
    EXPECT_EQ(profile.layer(0).value_head(0), profile.layer(0).value());
    return profile.layer(0).value_loss(0);
  };
  EXPECT_DOUBLE_EQ(loss(GradientDeltaOptions::PROMPT), 2);
  EXPECT_DOUBLE_EQ(loss(GradientDeltaOptions::TOKEN), 4 + 6);
  EXPECT_DOUBLE_EQ(loss(GradientDeltaOptions::ELEMENT), 26);
}

TEST(FisherDeltaTest, WeighsSquaredErrorsBySquaredGradients) {
  const ImportanceProfile profile =
      ProfileOf(*Make("fisher_delta"), SmallTrace(kGradient), Formats({1}, 2));
  // T / 2 = 1.
  EXPECT_DOUBLE_EQ(profile.layer(0).value_loss(0), 4 + 25 + 9 + 100 + 36);
  EXPECT_EQ(profile.layer(0).key_loss(0), 0);
}

TEST(FisherTest, SumsSquaredGradients) {
  const std::vector<float> gradient = {1, 2, 3, 0, 0, 0, 0, -4,
                                       0, 0, 0, 0, 5, 0, 0, 0};
  const std::vector<float> of_values(16, 2);
  LayerTrace trace = SmallTrace(gradient);
  trace.value_state_gradient = of_values.data();
  const ImportanceProfile profile = ProfileOf(*Make("fisher"), trace);
  EXPECT_DOUBLE_EQ(profile.layer(0).key(), 55);
  EXPECT_DOUBLE_EQ(profile.layer(0).key_head(0), 55);
  EXPECT_DOUBLE_EQ(profile.layer(0).value(), 64);
  EXPECT_DOUBLE_EQ(profile.layer(0).value_head(0), 64);
}

TEST(QuantizationErrorTest, IsRelativeToTheStates) {
  const ImportanceProfile profile = ProfileOf(
      *Make("quantization_error"), SmallTrace(kStates), Formats({1, 16}, 2));
  EXPECT_DOUBLE_EQ(profile.layer(0).value_loss(0), std::sqrt(5.0 / 85));
  EXPECT_EQ(profile.layer(0).value_loss(1), 0);
  EXPECT_EQ(profile.unit(), ImportanceProfile::RELATIVE_ERROR);
}

// The same numbers as T = 1, G = 2.
TEST(QuantizationErrorTest, HeadsAreRelativeToTheirOwnStates) {
  LayerTrace trace = SmallTrace(kStates);
  trace.num_tokens = 1;
  trace.num_heads = trace.num_kv_heads = 2;
  const ImportanceProfile profile =
      ProfileOf(*Make("quantization_error"), trace, Formats({1}, 2));
  const LayerImportance& layer = profile.layer(0);
  EXPECT_DOUBLE_EQ(layer.value(), std::sqrt(5.0 / 85));
  EXPECT_DOUBLE_EQ(layer.value_head(0), std::sqrt(4.0 / 52));
  EXPECT_DOUBLE_EQ(layer.value_head(1), std::sqrt(1.0 / 33));
}

// T = 3, G = 2, D = 2: norms of head 0 are 5, 13, 3, of head 1 1, 2, 3; of
// values three times as much.
TEST(StateNormsTest, AreMeansOverTokensForEachHead) {
  const std::vector<float> keys = {3, 4, 0, 1, 5, 12, 2, 0, 0, -3, 3, 0};
  std::vector<float> values = keys;
  for (float& v : values) v *= 3;
  const LayerTrace trace = {.num_tokens = 3,
                            .num_kv_heads = 2,
                            .head_dim = 2,
                            .key_states = keys.data(),
                            .value_states = values.data()};
  for (const auto& [name, size] :
       {std::pair{"key_norm", 1.0}, std::pair{"value_norm", 3.0}}) {
    const ImportanceProfile profile = ProfileOf(*Make(name), trace);
    const LayerImportance& layer = profile.layer(0);
    EXPECT_DOUBLE_EQ(layer.key_head(0), 7 * size);
    EXPECT_DOUBLE_EQ(layer.value_head(1), 2 * size);
    EXPECT_DOUBLE_EQ(layer.key(), 4.5 * size);
    EXPECT_DOUBLE_EQ(layer.value(), 4.5 * size);
  }
}

// G = 2, D = 1, C = 2.
TEST(WeightNormTest, IsTheFrobeniusNorm) {
  const std::vector<float> key = {3, 4, 0, 12}, value = {0, 0, 6, -8};
  const ImportanceProfile profile =
      ProfileOf(*Make("weight_norm"), {.num_tokens = 1,
                                       .num_kv_heads = 2,
                                       .head_dim = 1,
                                       .hidden_size = 2,
                                       .key_projection = key.data(),
                                       .value_projection = value.data()});
  const LayerImportance& layer = profile.layer(0);
  EXPECT_DOUBLE_EQ(layer.key(), 13);
  EXPECT_DOUBLE_EQ(layer.key_head(0), 5);
  EXPECT_DOUBLE_EQ(layer.key_head(1), 12);
  EXPECT_DOUBLE_EQ(layer.value(), 10);
}

TEST(GradientNormTest, HeadsAndTheNormOfTheMean) {
  const std::vector<float> first = {3, 4, 0, 12}, second = {3, 4, 0, -12};
  GradientNormOptions options;
  const auto profile = [&] {
    const auto estimator = Make("gradient_norm", &options);
    EXPECT_OK(estimator->Start({.num_layers = 1}));
    for (int prompt = 0; prompt < 2; ++prompt) {
      const auto& x = prompt == 0 ? first : second;
      EXPECT_OK(estimator->Observe({.prompt = prompt,
                                    .num_tokens = 1,
                                    .num_kv_heads = 2,
                                    .head_dim = 1,
                                    .hidden_size = 2,
                                    .key_projection_gradient = x.data(),
                                    .value_projection_gradient = x.data()}));
    }
    return *estimator->Finish();
  };
  EXPECT_DOUBLE_EQ(profile().layer(0).key(), 13);
  EXPECT_DOUBLE_EQ(profile().layer(0).key_head(1), 12);
  options.set_averaging(GradientNormOptions::NORM_OF_MEAN);
  EXPECT_DOUBLE_EQ(profile().layer(0).key(), 5);
  EXPECT_DOUBLE_EQ(profile().layer(0).value_head(0), 5);
  EXPECT_DOUBLE_EQ(profile().layer(0).value_head(1), 0);
}

// T, H, G, D of the attention tests.
constexpr int kT = 70, kH = 4, kG = 2, kD = 8;

// out [T, H, D] and weights [H, T, T], plainly.
struct Attention {
  std::vector<double> out, weights;
};
Attention Attend(const std::vector<float>& q, const std::vector<float>& k,
                 const std::vector<float>& v, int window) {
  Attention attention{std::vector<double>(kT * kH * kD),
                      std::vector<double>(kH * kT * kT)};
  for (int h = 0; h < kH; ++h) {
    const int g = h / (kH / kG);
    for (int t = 0; t < kT; ++t) {
      double* w = attention.weights.data() + (h * kT + t) * kT;
      double sum = 0;
      for (int s = window > 0 ? std::max(0, t + 1 - window) : 0; s <= t; ++s) {
        double dot = 0;
        for (int d = 0; d < kD; ++d)
          dot += double{q[(t * kH + h) * kD + d]} * k[(s * kG + g) * kD + d];
        w[s] = std::exp(dot / std::sqrt(kD));
        sum += w[s];
      }
      for (int s = 0; s <= t; ++s) {
        w[s] /= sum;
        for (int d = 0; d < kD; ++d) {
          attention.out[(t * kH + h) * kD + d] +=
              w[s] * v[(s * kG + g) * kD + d];
        }
      }
    }
  }
  return attention;
}

struct AttentionTrace {
  explicit AttentionTrace(int window) {
    trace = {.num_tokens = kT,
             .num_heads = kH,
             .num_kv_heads = kG,
             .head_dim = kD,
             .sliding_window = window,
             .key_states = keys.data(),
             .value_states = values.data(),
             .query_states = queries.data()};
  }
  const std::vector<float> queries = Normal(kT * kH * kD, 10, 2),
                           keys = Normal(kT * kG * kD, 11),
                           values = Normal(kT * kG * kD, 12);
  LayerTrace trace;
};

// Of query heads [first, first + count).
double RelativeError(const Attention& exact, const Attention& other,
                     int first = 0, int count = kH) {
  double sum = 0;
  for (int row = 0; row < kT * kH; ++row) {
    if (row % kH < first || row % kH >= first + count) continue;
    double error = 0, squares = 0;
    for (int i = row * kD; i < (row + 1) * kD; ++i) {
      error += std::pow(other.out[i] - exact.out[i], 2);
      squares += std::pow(exact.out[i], 2);
    }
    sum += std::sqrt(error / squares);
  }
  return sum / (kT * count);
}

TEST(AttentionOutputErrorTest, MatchesPlainAttentionOverTheReadStates) {
  const FormatChoices formats = Formats({2, 5, 16}, 8);
  ASSERT_OK_AND_ASSIGN(const StateQuantizer quantizer,
                       StateQuantizer::Make(formats, kD));
  for (const int window : {0, 9}) {
    const AttentionTrace made(window);
    const Attention exact =
        Attend(made.queries, made.keys, made.values, window);
    const ImportanceProfile profile =
        ProfileOf(*Make("attention_output_error"), made.trace, formats);
    const LayerImportance& layer = profile.layer(0);
    for (int f = 0; f < 3; ++f) {
      std::vector<float> keys = quantizer.Error(Side::kKey, f, made.trace);
      std::vector<float> values = quantizer.Error(Side::kValue, f, made.trace);
      for (size_t i = 0; i < keys.size(); ++i) {
        keys[i] += made.keys[i];
        values[i] += made.values[i];
      }
      EXPECT_NEAR(
          layer.key_loss(f),
          RelativeError(exact, Attend(made.queries, keys, made.values, window)),
          1e-5);
      const Attention of_values =
          Attend(made.queries, made.keys, values, window);
      EXPECT_NEAR(layer.value_loss(f), RelativeError(exact, of_values), 1e-5);
      for (int g = 0; f == 0 && g < kG; ++g) {
        EXPECT_NEAR(layer.value_head(g),
                    RelativeError(exact, of_values, g * kH / kG, kH / kG),
                    1e-5);
      }
    }
    EXPECT_GT(layer.key_loss(0), 2 * layer.key_loss(1));
    EXPECT_NEAR((layer.key_head(0) + layer.key_head(1)) / 2, layer.key(),
                1e-12);
  }
}

TEST(AttentionEntropyTest, MatchesPlainWeights) {
  for (const int window : {0, 9}) {
    const AttentionTrace made(window);
    const Attention exact =
        Attend(made.queries, made.keys, made.values, window);
    double expected = 0;
    std::vector<double> heads(kG);
    for (int h = 0; h < kH; ++h) {
      for (int t = 1; t < kT; ++t) {
        double entropy = 0;
        for (int s = 0; s <= t; ++s) {
          const double w = exact.weights[(h * kT + t) * kT + s];
          if (w > 0) entropy -= w * std::log(w);
        }
        const int seen = window > 0 ? std::min(window, t + 1) : t + 1;
        const double concentration = 1 - entropy / std::log(seen);
        expected += concentration / (kH * (kT - 1));
        heads[h / (kH / kG)] += concentration * kG / (kH * (kT - 1));
      }
    }
    const ImportanceProfile profile =
        ProfileOf(*Make("attention_entropy"), made.trace);
    EXPECT_NEAR(profile.layer(0).key(), expected, 1e-5);
    for (int g = 0; g < kG; ++g)
      EXPECT_NEAR(profile.layer(0).key_head(g), heads[g], 1e-5);
  }
}

TEST(AttentionEntropyTest, LookingAtAllAlikeIsNoConcentration) {
  AttentionTrace made(0);
  const std::vector<float> zeros(kT * kH * kD);
  made.trace.query_states = zeros.data();
  EXPECT_NEAR(ProfileOf(*Make("attention_entropy"), made.trace).layer(0).key(),
              0, 1e-6);
}

TEST(PositionTest, EndsMatterMost) {
  const auto estimator = Make("position");
  ASSERT_OK(estimator->Start({.num_layers = 5}));
  ASSERT_OK_AND_ASSIGN(const ImportanceProfile profile, estimator->Finish());
  std::vector<double> scores;
  for (const LayerImportance& layer : profile.layer()) {
    scores.push_back(layer.key());
    EXPECT_EQ(layer.value(), layer.key());
  }
  EXPECT_EQ(scores, (std::vector<double>{1, 0.5, 1.0 / 3, 0.5, 1}));
}

// Costs of a plan that add up over layers and sides: a layer's keys cost
// (layer + 1) / bits, its values 10 times that; nothing in full precision.
double AdditiveCost(const CachePlan& plan) {
  double sum = 0;
  for (int i = 0; i < plan.layer_size(); ++i) {
    const int key = plan.layer(i).key().bits();
    const int value = plan.layer(i).value().bits();
    if (key != 16) sum += (i + 1.0) / key;
    if (value != 16) sum += 10 * (i + 1.0) / value;
  }
  return sum;
}

// Whatever the other layers hold, the cost of a single change is its own.
TEST(TrialsTest, FindTheCostOfEverySingleChange) {
  const FormatChoices formats = Formats({2, 4, 16}, 4);
  LeaveOneOutOptions spared;
  spared.set_others(LeaveOneOutOptions::QUANTIZED);
  struct Case {
    std::unique_ptr<ImportanceEstimator> estimator;
    double loss, kl;  // which of the two it reads
  };
  const Case cases[] = {{Make("isolated_kl"), NAN, 1},
                        {Make("leave_one_out"), 1, NAN},
                        {Make("leave_one_out", &spared), 1, NAN}};
  for (const auto& [estimator, loss, kl] : cases) {
    ASSERT_OK(estimator->Start(
        {.num_layers = 3, .head_dim = 4, .formats = &formats}));
    const std::vector<CachePlan> plans = estimator->TrialPlans();
    for (int prompt = 0; prompt < 2; ++prompt) {
      for (int p = 0; p < static_cast<int>(plans.size()); ++p) {
        const double cost = AdditiveCost(plans[p]) * (prompt + 1);
        ASSERT_OK(estimator->ObserveTrial({.plan = p,
                                           .prompt = prompt,
                                           .num_tokens = 7,
                                           .loss_difference = loss * cost,
                                           .kl_divergence = kl * cost}));
      }
    }
    ASSERT_OK_AND_ASSIGN(const ImportanceProfile profile, estimator->Finish());
    EXPECT_EQ(profile.num_prompts(), 2);
    EXPECT_EQ(profile.num_tokens(), 14);
    for (int i = 0; i < 3; ++i) {
      const LayerImportance& layer = profile.layer(i);
      EXPECT_NEAR(layer.key_loss(0), 1.5 * (i + 1) / 2, 1e-12);
      EXPECT_NEAR(layer.key_loss(1), 1.5 * (i + 1) / 4, 1e-12);
      EXPECT_NEAR(layer.value_loss(0), 15.0 * (i + 1) / 2, 1e-12);
      EXPECT_NEAR(layer.value_loss(2), 0, 1e-12);
    }
  }
}

// A KV head's keys cost (layer + 1) (head + 1) / bits, and its values 10 times
// that; also where all other formats are quantized.
TEST(TrialsTest, FindTheCostOfEverySingleKvHead) {
  constexpr int kHeads = 3;
  const FormatChoices formats = Formats({2, 4, 16}, 4);
  const auto cost_of = [](const CachePlan& plan) {
    double sum = 0;
    for (int i = 0; i < plan.layer_size(); ++i) {
      for (int head = 0; head < kHeads; ++head) {
        const int key = FormatOfHead(plan.layer(i), Side::kKey, head).bits();
        const int value =
            FormatOfHead(plan.layer(i), Side::kValue, head).bits();
        if (key != 16) sum += (i + 1.0) * (head + 1) / key;
        if (value != 16) sum += 10 * (i + 1.0) * (head + 1) / value;
      }
    }
    return sum;
  };
  LeaveOneOutOptions spared;
  spared.set_others(LeaveOneOutOptions::QUANTIZED);
  for (const bool quantized : {false, true}) {
    const auto estimator = Make("leave_one_out", quantized ? &spared : nullptr);
    ASSERT_OK(estimator->Start({.num_layers = 2,
                                .head_dim = 4,
                                .formats = &formats,
                                .granularity = CachePlan::HEAD,
                                .num_kv_heads = kHeads}));
    const std::vector<CachePlan> plans = estimator->TrialPlans();
    // Four sides, each as a whole and by its heads, in two formats; all
    // quantized, one at 4 or 16 bits, and all at 2.
    EXPECT_EQ(plans.size(), 4 * 4 * 2 + quantized);
    for (int p = 0; p < static_cast<int>(plans.size()); ++p) {
      ASSERT_OK(estimator->ObserveTrial(
          {.plan = p, .num_tokens = 7, .loss_difference = cost_of(plans[p])}));
    }
    ASSERT_OK_AND_ASSIGN(const ImportanceProfile profile, estimator->Finish());
    for (int i = 0; i < 2; ++i) {
      const LayerImportance& layer = profile.layer(i);
      EXPECT_NEAR(layer.key_loss(0), 6 * (i + 1) / 2.0, 1e-12);
      for (int head = 0; head < kHeads; ++head) {
        const double unit = (i + 1.0) * (head + 1);
        EXPECT_NEAR(layer.key_head(head), unit / 2, 1e-12);
        EXPECT_NEAR(layer.key_head_loss(3 * head), unit / 2, 1e-12);
        EXPECT_NEAR(layer.key_head_loss(3 * head + 1), unit / 4, 1e-12);
        EXPECT_NEAR(layer.key_head_loss(3 * head + 2), 0, 1e-12);
        EXPECT_NEAR(layer.value_head_loss(3 * head + 1), 10 * unit / 4, 1e-12);
      }
    }
  }
}

TEST(TrialsTest, EachPlanIsAskedForOnceAndFullPrecisionNever) {
  const FormatChoices formats = Formats({2, 4, 16}, 4);
  const auto estimator = Make("leave_one_out");
  ASSERT_OK(
      estimator->Start({.num_layers = 3, .head_dim = 4, .formats = &formats}));
  EXPECT_EQ(estimator->TrialPlans().size(), 3 * 2 * 2);
  LeaveOneOutOptions options;
  options.set_others(LeaveOneOutOptions::QUANTIZED);
  const auto spared = Make("leave_one_out", &options);
  ASSERT_OK(
      spared->Start({.num_layers = 3, .head_dim = 4, .formats = &formats}));
  // All at 2 bits; each of six streams at 4 and at 16.
  EXPECT_EQ(spared->TrialPlans().size(), 1 + 6 * 2);
}

TEST(TrialsTest, APromptThatMissedATrialIsRefused) {
  const FormatChoices formats = Formats({2}, 4);
  const auto estimator = Make("isolated_kl");
  ASSERT_OK(
      estimator->Start({.num_layers = 1, .head_dim = 4, .formats = &formats}));
  ASSERT_OK(estimator->ObserveTrial({.plan = 0, .num_tokens = 3}));
  EXPECT_THAT(
      estimator->Finish().status(),
      testing::StatusIs(absl::StatusCode::kFailedPrecondition,
                        ::testing::HasSubstr("seen under 1 trial plans of 2")));
}

TEST(TrialsTest, NoiseBelowZeroCountsAsNothing) {
  const FormatChoices formats = Formats({2}, 4);
  const auto estimator = Make("leave_one_out");
  ASSERT_OK(
      estimator->Start({.num_layers = 1, .head_dim = 4, .formats = &formats}));
  // Means: -0.5 and 0.5.
  for (int prompt = 0; prompt < 2; ++prompt) {
    ASSERT_OK(estimator->ObserveTrial({.plan = 0,
                                       .prompt = prompt,
                                       .num_tokens = 3,
                                       .loss_difference = -prompt * 1.0}));
    ASSERT_OK(estimator->ObserveTrial({.plan = 1,
                                       .prompt = prompt,
                                       .num_tokens = 3,
                                       .loss_difference = 2.0 * prompt - 0.5}));
  }
  ASSERT_OK_AND_ASSIGN(const ImportanceProfile profile, estimator->Finish());
  EXPECT_EQ(profile.layer(0).key(), 0);
  EXPECT_DOUBLE_EQ(profile.layer(0).value(), 0.5);
}

}  // namespace
}  // namespace kvmix
