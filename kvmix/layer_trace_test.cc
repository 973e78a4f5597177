#include "kvmix/layer_trace.h"

#include "gtest/gtest.h"

namespace kvmix {
namespace {

TEST(SignalSetTest, NamesItsSignals) {
  EXPECT_EQ(SignalSet().ToString(), "");
  SignalSet signals = {Signal::kValueProjectionGradient};
  signals.Add({Signal::kKeyStates});
  EXPECT_EQ(signals.ToString(), "key_states, value_projection_gradient");
}

TEST(SignalSetTest, OnlyGradientsNeedABackwardPass) {
  EXPECT_TRUE(SignalSet().empty());
  EXPECT_FALSE(SignalSet().NeedsGradients());
  EXPECT_FALSE(
      SignalSet({Signal::kKeyStates, Signal::kValueStates, Signal::kQueryStates,
                 Signal::kKeyProjection, Signal::kValueProjection})
          .NeedsGradients());
  for (Signal gradient :
       {Signal::kKeyStateGradient, Signal::kValueStateGradient,
        Signal::kKeyProjectionGradient, Signal::kValueProjectionGradient}) {
    EXPECT_TRUE(SignalSet({gradient}).NeedsGradients());
  }
}

}  // namespace
}  // namespace kvmix
