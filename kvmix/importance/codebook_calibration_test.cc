#include "kvmix/importance/codebook_calibration.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/random.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/importance/state_quantizer.h"
#include "kvmix/key_rotation.h"
#include "quant/sparse_outliers.pb.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using ::testing::Pointwise;
using testing::StatusIs;

constexpr int kTokens = 256, kHeads = 2, kDim = 32;
constexpr int64_t kSize = int64_t{kTokens} * kHeads * kDim;

// Skewed numbers whose small ones matter most: neither equally spaced levels
// nor those of unweighted errors are good for them.
struct States {
  States() : key(kSize), value(kSize), gradient(kSize) {
    CounterRandom random(5, 0);
    for (int64_t i = 0; i < kSize; ++i) {
      key[i] = static_cast<float>(std::exp(random.Normal()));
      value[i] = static_cast<float>(std::exp(random.Normal()));
      gradient[i] = static_cast<float>(random.Normal() / (1 + 3 * key[i]) /
                                       (1 + 3 * value[i]));
    }
  }
  LayerTrace Trace() const {
    return {.num_tokens = kTokens,
            .num_heads = kHeads,
            .num_kv_heads = kHeads,
            .head_dim = kDim,
            .key_states = key.data(),
            .value_states = value.data(),
            .key_state_gradient = gradient.data(),
            .value_state_gradient = gradient.data()};
  }
  std::vector<float> key, value, gradient;
};

CodebookCalibration Shown(const LayerTrace& trace,
                          const CodebookCalibrationOptions& options) {
  CodebookCalibration calibration(options);
  EXPECT_OK(calibration.Start({}));
  EXPECT_OK(calibration.Observe(trace));
  return calibration;
}

std::vector<float> EquallySpaced(int bits) {
  std::vector<float> levels;
  for (int i = 0; i < 1 << bits; ++i)
    levels.push_back(static_cast<float>(i) / ((1 << bits) - 1));
  return levels;
}

// What the real codec loses with these levels: sum of (gradient * error)^2.
double Loss(const States& states, Side side, int bits,
            const std::vector<float>& levels, double outliers) {
  Component codebook;
  codebook.set_name("codebook");
  CodebookOptions options;
  for (auto* of : {options.mutable_key(), options.mutable_value()}) {
    of->set_group_size(kDim);
    of->add_levels()->set_bits(bits);
    *of->mutable_levels(0)->mutable_level() = {levels.begin(), levels.end()};
  }
  codebook.mutable_options()->PackFrom(options);
  Component component = codebook;
  if (outliers > 0) {
    SparseOutliersOptions sparse;
    *sparse.mutable_inner() = codebook;
    sparse.set_fraction(outliers);
    component.set_name("sparse_outliers");
    component.mutable_options()->PackFrom(sparse);
  }
  const auto quantizer =
      Registry<Quantizer>::Get().Make(component, "quantizer");
  EXPECT_OK(quantizer);
  FormatChoices formats;
  for (const Side s : {Side::kKey, Side::kValue}) {
    const auto format = (*quantizer)->FormatFor(s, bits, kDim);
    EXPECT_OK(format);
    *(s == Side::kKey ? formats.add_key() : formats.add_value()) = *format;
  }
  const auto states_as_packed = StateQuantizer::Make(formats, kDim);
  EXPECT_OK(states_as_packed);
  const std::vector<float> error =
      states_as_packed->Error(side, 0, states.Trace());
  double loss = 0;
  for (int64_t i = 0; i < kSize; ++i)
    loss += std::pow(static_cast<double>(states.gradient[i]) * error[i], 2);
  return loss;
}

class CodebookCalibrationTest : public ::testing::TestWithParam<double> {};

TEST_P(CodebookCalibrationTest, PredictsWhatTheCodecLosesAndBeatsOtherLevels) {
  const double outliers = GetParam();
  States states;
  const CodebookCalibrationOptions options{.group_size = kDim,
                                           .outlier_fraction = outliers};
  const CodebookCalibration fisher = Shown(states.Trace(), options);
  States flat = states;
  flat.gradient.assign(kSize, 1);
  const CodebookCalibration unweighted = Shown(flat.Trace(), options);
  for (const Side side : {Side::kKey, Side::kValue}) {
    for (const int bits : {2, 3}) {
      ASSERT_OK_AND_ASSIGN(const auto levels, fisher.Levels(side, bits));
      ASSERT_OK_AND_ASSIGN(const auto others, unweighted.Levels(side, bits));
      const double loss = Loss(states, side, bits, levels, outliers);
      const double equal =
          Loss(states, side, bits, EquallySpaced(bits), outliers);
      EXPECT_NEAR(fisher.shares(side).Error(levels) /
                      fisher.shares(side).Error(EquallySpaced(bits)),
                  loss / equal, 0.02 * loss / equal);
      EXPECT_LT(loss, 0.7 * equal);
      EXPECT_LT(loss, 0.9 * Loss(states, side, bits, others, outliers));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Outliers, CodebookCalibrationTest,
                         ::testing::Values(0, 0.05));

TEST(CodebookCalibrationPreRopeTest, KeysAreSeenAsTheyWereBeforeRope) {
  const KeyRotation rotation(
      kDim, [](int64_t position, float* cos, float* sin) {
        for (int i = 0; i < kDim / 2; ++i) {
          const double angle = position * std::pow(100.0, -2.0 * i / kDim);
          cos[i] = static_cast<float>(std::cos(angle));
          sin[i] = static_cast<float>(std::sin(angle));
        }
      });
  const States before;
  States after = before;
  for (std::vector<float>* x : {&after.key, &after.gradient}) {
    for (int h = 0; h < kHeads; ++h) {
      for (int t = 0; t < kTokens; ++t)
        rotation.Rotate(t, 1, x->data() + (t * kHeads + h) * kDim, 1);
    }
  }
  LayerTrace trace = after.Trace();
  trace.key_rotation = &rotation;
  const auto expected = Shown(before.Trace(), {.group_size = kDim});
  const auto plain = Shown(trace, {.group_size = kDim});
  const auto pre_rope = Shown(trace, {.group_size = kDim, .pre_rope = true});
  ASSERT_OK_AND_ASSIGN(const auto want, expected.Levels(Side::kKey, 2));
  ASSERT_OK_AND_ASSIGN(const auto got, pre_rope.Levels(Side::kKey, 2));
  EXPECT_THAT(got, Pointwise(::testing::FloatNear(1e-3f), want));
  ASSERT_OK_AND_ASSIGN(const auto other, plain.Levels(Side::kKey, 2));
  EXPECT_GT(std::abs(other[1] - want[1]), 0.02);
}

TEST(CodebookCalibrationErrorTest, GroupsOfValuesMustDivideTheHead) {
  const States states;
  CodebookCalibration calibration({.group_size = 24});
  EXPECT_THAT(calibration.Observe(states.Trace()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("group_size is 24 but must divide head_dim, "
                                 "32")));
}

}  // namespace
}  // namespace kvmix
