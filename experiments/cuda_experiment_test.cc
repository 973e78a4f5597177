// A whole experiment on a CUDA device, or on the emulator, against the same one
// on the CPU.
#include <cmath>
#include <string>

#include "experiments/config.h"
#include "experiments/run_experiment.h"
#include "experiments/small_experiment.h"
#include "experiments/text_proto.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::kvmix::testing::EmptyFolder;
using ::kvmix::testing::SmallExperiment;
using ::kvmix::testing::StatusIs;
using ::testing::HasSubstr;

// The quickstart, shorter: full precision, keys by channel as released and
// dense, by token, KIVI's window, and a plan that differs between layers.
constexpr char kConfig[] = R"(
dataset {
  name: "recall"
  synthetic { task: "recall" documents: 1 tokens: 110 facts: 5 questions: 3 }
}
evaluation { chunk_tokens: 48 }
profile { num_prompts: 1 }
speed { prompt_tokens: 8 decode_tokens: 3 rounds: 1 }
quantizer {
  name: "group_affine"
  options {
    [type.googleapis.com/kvmix.GroupAffineOptions] {
      key { three_bit: KVMIX_3BIT_11 }
    }
  }
}
recency_policy { name: "pivotal_context" }
method {
  name: "KIVI"
  bit_allocator { name: "uniform" }
  recency_policy {
    name: "residual_window"
    options { [type.googleapis.com/kvmix.ResidualWindowOptions] { tokens: 32 } }
  }
}
method {
  name: "KVmix-20%"
  bit_allocator {
    name: "top_fraction"
    options {
      [type.googleapis.com/kvmix.TopFractionOptions] { high_fraction: 0.2 }
    }
  }
}
method {
  name: "KVmix-20%-dense"
  bit_allocator {
    name: "top_fraction"
    options {
      [type.googleapis.com/kvmix.TopFractionOptions] { high_fraction: 0.2 }
    }
  }
  quantizer { name: "group_affine" }
}
)";

absl::StatusOr<ExperimentResult> RunSmall(const std::string& changes,
                                          const std::string& folder) {
  ExperimentConfig more;
  KVMIX_RETURN_IF_ERROR(ParseTextProto(changes, "changes", more));
  KVMIX_ASSIGN_OR_RETURN(ExperimentConfig config, SmallExperiment(kConfig));
  config.MergeFrom(more);
  config.set_output(EmptyFolder(folder));
  KVMIX_RETURN_IF_ERROR(ResolveConfig(config));
  return RunExperiment(config);
}

// Both compute in float, but attention on the device rounds queries and softmax
// weights to half, and sums in another order round now and then a key or a
// value to another half, or another code.
void ExpectSameQuality(const Quality& got, const Quality& want,
                       const std::string& method) {
  EXPECT_EQ(got.tokens(), want.tokens()) << method;
  EXPECT_NEAR(got.nll(), want.nll(), 0.005) << method;
  EXPECT_NEAR(got.kl_mean(), want.kl_mean(), 0.002 + 0.1 * want.kl_mean())
      << method;
  EXPECT_EQ(got.answers().answers(), want.answers().answers()) << method;
}

TEST(CudaExperimentTest, RecordIsTheCpusWithinRounding) {
  ASSERT_OK_AND_ASSIGN(const ExperimentResult cpu, RunSmall("", "cpu"));
  ASSERT_OK_AND_ASSIGN(
      const ExperimentResult cuda,
      RunSmall("model { device: CUDA check_against: CPU }", "cuda"));
  EXPECT_EQ(cpu.record.model().device(), "CPU");
  EXPECT_EQ(cuda.record.model().device(), "CUDA");
  EXPECT_NE(cpu.record.fingerprint(), cuda.record.fingerprint());
  ASSERT_EQ(cuda.record.method_size(), cpu.record.method_size());
  for (int m = 0; m < cpu.record.method_size(); ++m) {
    const MethodRecord& want = cpu.record.method(m);
    const MethodRecord& got = cuda.record.method(m);
    EXPECT_EQ(PrintTextProto(got.plan()), PrintTextProto(want.plan()));
    // Profiles are the device's own, where a method has one.
    EXPECT_EQ(got.profile().empty(), want.profile().empty());
    EXPECT_EQ(got.profile() == want.profile(), want.profile().empty());
    EXPECT_THAT(got.attention_kernels(), HasSubstr("tensor cores"));
    ExpectSameQuality(got.dataset(0).quality(), want.dataset(0).quality(),
                      want.name());
    EXPECT_GT(got.dataset(0).memory().bytes(), 0);
  }
  EXPECT_GT(cuda.timings.speed(3).decode(), 0);
}

TEST(CudaExperimentTest, WhatTheDeviceCannotDoIsSaidBeforeTheRun) {
  EXPECT_THAT(
      RunSmall("model { device: CUDA compute: INT8 }", "int8").status(),
      StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("compute INT8")));
  EXPECT_THAT(RunSmall("model { device: CUDA attention_arithmetic: INT8 }",
                       "arithmetic")
                  .status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("model.attention_arithmetic")));
  EXPECT_THAT(RunSmall("model { check_against: CPU }", "check").status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("model.check_against")));
}

}  // namespace
}  // namespace kvmix
