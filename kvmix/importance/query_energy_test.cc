#include "kvmix/importance/query_energy.h"

#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "quant/channel_levels.pb.h"
#include "quant/quantizer.h"

namespace kvmix {
namespace {

constexpr int kDim = 32;

QuantFormat FormatOf(const std::string& quantizer, Side side, int bits) {
  Component component;
  component.set_name(quantizer);
  auto made = Registry<Quantizer>::Get().Make(component, "quantizer");
  EXPECT_OK(made);
  auto format = (*made)->FormatFor(side, bits, kDim);
  EXPECT_OK(format);
  return *std::move(format);
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
  QueryEnergy energy;
  EXPECT_OK(energy.Start({.num_layers = 1, .head_dim = kDim}));
  LayerTrace trace;
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
  *formats.add_key() = FormatOf("channel_levels", Side::kKey, 2);
  ASSERT_OK_AND_ASSIGN(wanted, WantQueryEnergy(formats));
  EXPECT_TRUE(wanted);
}

}  // namespace
}  // namespace kvmix
