#include "kvmix/importance/query_energy.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/random.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/key_rotation.h"
#include "quant/channel_levels.pb.h"
#include "quant/pre_rope.pb.h"
#include "quant/quantizer.h"

namespace kvmix {
namespace {

constexpr int kDim = 32;

double Angle(int64_t position, int pair) {
  return static_cast<double>(position) * std::pow(100.0, -2.0 * pair / kDim);
}

// RoPE with a factor on keys and queries, as YaRN has it.
constexpr double kFactor = 1.2;

const KeyRotation& Rotation() {
  static const auto* const rotation =
      new KeyRotation(kDim, [](int64_t position, float* cos, float* sin) {
        for (int i = 0; i < kDim / 2; ++i) {
          cos[i] = static_cast<float>(kFactor * std::cos(Angle(position, i)));
          sin[i] = static_cast<float>(kFactor * std::sin(Angle(position, i)));
        }
      });
  return *rotation;
}

QuantFormat FormatOf(const Component& component, Side side, int bits) {
  auto made = Registry<Quantizer>::Get().Make(component, "quantizer");
  EXPECT_OK(made);
  auto format = (*made)->FormatFor(side, bits, kDim);
  EXPECT_OK(format);
  return *std::move(format);
}

QuantFormat FormatOf(const std::string& quantizer, Side side, int bits) {
  Component component;
  component.set_name(quantizer);
  return FormatOf(component, side, bits);
}

// `inner` before RoPE.
QuantFormat PreRopeFormatOf(const std::string& inner, int bits) {
  PreRopeOptions options;
  options.mutable_inner()->set_name(inner);
  Component component;
  component.set_name("pre_rope");
  component.mutable_options()->PackFrom(options);
  return FormatOf(component, Side::kKey, bits);
}

// Two KV heads of two query heads each, two tokens. Query head h has h + 1 in
// channel h alone, and the second token the same twice as large.
ImportanceProfile Observed() {
  std::vector<float> queries;
  for (int token = 1; token <= 2; ++token)
    for (int head = 0; head < 4; ++head)
      for (int c = 0; c < kDim; ++c)
        queries.push_back(c == head ? static_cast<float>(token * (head + 1))
                                    : 0);
  const std::vector<float> keys(2 * 2 * kDim);
  QueryEnergy energy;
  EXPECT_OK(energy.Start({.num_layers = 1, .head_dim = kDim}));
  LayerTrace trace;
  trace.key_states = keys.data();
  trace.key_rotation = &Rotation();
  trace.num_tokens = 2;
  trace.num_heads = 4;
  trace.num_kv_heads = 2;
  trace.head_dim = kDim;
  trace.query_states = queries.data();
  EXPECT_OK(energy.Observe(trace));
  auto profile = energy.Finish();
  EXPECT_OK(profile);
  return *std::move(profile);
}

TEST(QueryEnergyTest, MeanSquaresOfAKvHeadsQueriesRelativeToTheirMean) {
  const ImportanceProfile profile = Observed();
  ASSERT_EQ(profile.layer_size(), 1);
  // KV head 0: squares 1 : 4 in channels 0, 1; KV head 1: 9 : 16 in 2, 3. Each
  // head's mean over the channels is 1, and there are two heads.
  std::vector<float> expected = {0.2f, 0.8f, 0.36f, 0.64f};
  expected.resize(kDim);
  for (float& e : expected) e *= kDim / 2.0f;
  ASSERT_EQ(profile.layer(0).query_energy_size(), kDim);
  for (int c = 0; c < kDim; ++c)
    EXPECT_FLOAT_EQ(profile.layer(0).query_energy(c), expected[c]) << c;
}

std::vector<float> NormalNumbers(int64_t n, uint64_t stream) {
  CounterRandom random(6, stream);
  std::vector<float> x(n);
  for (float& v : x) v = static_cast<float>(random.Normal());
  return x;
}

// A key that is 1 in channel c, turned to its position, in double.
std::vector<double> TurnedUnit(int c, int64_t position) {
  const int pair = c % (kDim / 2);
  const double cos = kFactor * std::cos(Angle(position, pair));
  const double sin = kFactor * std::sin(Angle(position, pair));
  std::vector<double> key(kDim);
  key[pair] = c < kDim / 2 ? cos : -sin;
  key[pair + kDim / 2] = c < kDim / 2 ? sin : cos;
  return key;
}

// A unit error in every channel of every key, one at a time: what it does to
// every score, squared, by the weight of the score.
TEST(QueryEnergyTest, BeforeRopeIsTheMeanSquaredChangeOfScores) {
  constexpr int kTokens = 40, kHeads = 4, kKvHeads = 2;
  for (const int64_t window : {0, 7}) {
    std::vector<float> queries = NormalNumbers(kTokens * kHeads * kDim, 1);
    const std::vector<float> keys = NormalNumbers(kTokens * kKvHeads * kDim, 2);
    // Queries that look the same way at every position do not average out.
    for (size_t i = 0; i < queries.size(); ++i)
      queries[i] += i % kDim % 5 == 0 ? 3.0f : 0.0f;
    LayerTrace trace;
    trace.num_tokens = kTokens;
    trace.num_heads = kHeads;
    trace.num_kv_heads = kKvHeads;
    trace.head_dim = kDim;
    trace.sliding_window = window;
    trace.key_rotation = &Rotation();
    trace.query_states = queries.data();
    trace.key_states = keys.data();
    QueryEnergy energy;
    ASSERT_OK(energy.Start({.num_layers = 1, .head_dim = kDim}));
    ASSERT_OK(energy.Observe(trace));
    ASSERT_OK_AND_ASSIGN(const ImportanceProfile profile, energy.Finish());

    std::vector<double> expected(kDim);
    for (int g = 0; g < kKvHeads; ++g) {
      std::vector<double> changes(kDim);
      for (int h = 2 * g; h < 2 * g + 2; ++h) {
        for (int m = 0; m < kTokens; ++m) {
          const float* q = queries.data() + (m * kHeads + h) * kDim;
          const int first = window == 0 ? 0 : std::max<int>(0, m + 1 - window);
          std::vector<double> weight(kTokens);
          double sum = 0;
          for (int n = first; n <= m; ++n) {
            double score = 0;
            for (int c = 0; c < kDim; ++c)
              score += static_cast<double>(q[c]) *
                       keys[(n * kKvHeads + g) * kDim + c];
            sum += weight[n] = std::exp(score / std::sqrt(kDim));
          }
          for (int n = first; n <= m; ++n) {
            for (int c = 0; c < kDim; ++c) {
              const std::vector<double> error = TurnedUnit(c, n);
              double change = 0;
              for (int d = 0; d < kDim; ++d) change += q[d] * error[d];
              changes[c] += weight[n] / sum * change * change;
            }
          }
        }
      }
      double all = 0;
      for (const double change : changes) all += change / kDim;
      for (int c = 0; c < kDim; ++c) expected[c] += changes[c] / all / kKvHeads;
    }
    ASSERT_EQ(profile.layer(0).query_energy_before_rope_size(), kDim);
    double apart = 0;  // of the energies after RoPE
    for (int c = 0; c < kDim; ++c) {
      EXPECT_NEAR(profile.layer(0).query_energy_before_rope(c), expected[c],
                  1e-4 * expected[c])
          << c;
      apart = std::max(
          apart, std::fabs(profile.layer(0).query_energy(c) / expected[c] - 1));
    }
    EXPECT_GT(apart, 0.3);
  }
}

TEST(QueryEnergyTest, KeysBeforeRopeAreCalibratedByTheEnergyBeforeRope) {
  CachePlan plan;
  *plan.add_layer()->mutable_key() = PreRopeFormatOf("channel_levels", 2);
  *plan.mutable_layer(0)->mutable_value() =
      FormatOf("group_affine", Side::kValue, 2);
  *plan.add_layer() = plan.layer(0);
  *plan.mutable_layer(1)->mutable_key() = PreRopeFormatOf("group_affine", 2);
  const CachePlan before = plan;
  ImportanceProfile profile;
  for (int l = 0; l < 2; ++l) {
    LayerImportance& layer = *profile.add_layer();
    for (int c = 0; c < kDim; ++c) {
      layer.add_query_energy(1);
      layer.add_query_energy_before_rope(static_cast<float>(c));
    }
  }
  ASSERT_OK(CalibratePlan(profile, plan));
  PreRopeFormat own;
  ChannelLevelsFormat inner;
  ASSERT_TRUE(plan.layer(0).key().options().UnpackTo(&own));
  ASSERT_TRUE(own.inner().options().UnpackTo(&inner));
  ASSERT_EQ(inner.weight_size(), kDim);
  EXPECT_EQ(inner.weight(5), 5);
  const auto bytes = [](const QuantFormat& format) {
    return (*MakeBlockCodec(format, Side::kKey, kDim))->bytes().total();
  };
  EXPECT_EQ(bytes(plan.layer(0).key()), bytes(before.layer(0).key()));
  EXPECT_EQ(plan.layer(1).DebugString(), before.layer(1).DebugString());
}

TEST(QueryEnergyTest, OnlyFormatsThatWantItAreCalibratedAndNoneGrows) {
  CachePlan plan;
  *plan.add_layer()->mutable_key() = FormatOf("channel_levels", Side::kKey, 2);
  *plan.mutable_layer(0)->mutable_value() =
      FormatOf("group_affine", Side::kValue, 2);
  const CachePlan before = plan;
  ASSERT_OK(CalibratePlan(ImportanceProfile(), plan));
  EXPECT_EQ(plan.DebugString(), before.DebugString());

  const ImportanceProfile profile = Observed();
  ASSERT_OK(CalibratePlan(profile, plan));
  EXPECT_EQ(plan.layer(0).value().DebugString(),
            before.layer(0).value().DebugString());
  ChannelLevelsFormat own;
  ASSERT_TRUE(plan.layer(0).key().options().UnpackTo(&own));
  ASSERT_EQ(own.weight_size(), kDim);
  EXPECT_EQ(own.weight(3), profile.layer(0).query_energy(3));
  const auto bytes = [](const QuantFormat& format) {
    return (*MakeBlockCodec(format, Side::kKey, kDim))->bytes().total();
  };
  EXPECT_EQ(bytes(plan.layer(0).key()), bytes(before.layer(0).key()));
}

TEST(QueryEnergyTest, KnowsWhoWantsIt) {
  FormatChoices formats;
  formats.add_key()->set_bits(16);
  *formats.add_key() = FormatOf("group_affine", Side::kKey, 2);
  ASSERT_OK_AND_ASSIGN(bool wanted, WantQueryEnergy(formats));
  EXPECT_FALSE(wanted);
  *formats.add_key() = PreRopeFormatOf("group_affine", 2);
  ASSERT_OK_AND_ASSIGN(wanted, WantQueryEnergy(formats));
  EXPECT_FALSE(wanted);
  for (const QuantFormat& format : {FormatOf("channel_levels", Side::kKey, 2),
                                    PreRopeFormatOf("channel_levels", 2)}) {
    FormatChoices with = formats;
    *with.add_key() = format;
    ASSERT_OK_AND_ASSIGN(wanted, WantQueryEnergy(with));
    EXPECT_TRUE(wanted);
  }
}

}  // namespace
}  // namespace kvmix
