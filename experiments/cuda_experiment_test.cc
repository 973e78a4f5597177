// A whole experiment on a CUDA device, or on the emulator, against the same one
// on the CPU.
#include <cmath>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
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

// A small one: full precision, keys by channel as released and dense, KIVI's
// window, a plan that differs between layers, and tokens that leave.
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
method {
  name: "H2O"
  bit_allocator { name: "uniform" }
  quantizer { name: "group_affine" }
  eviction_policy {
    name: "h2o"
    options {
      [type.googleapis.com/kvmix.ScoredEvictionOptions] {
        budget { fraction: 0.6 step: 8 }
      }
    }
  }
}
method {
  name: "StreamingLLM"
  bit_allocator {
    name: "uniform"
    options {
      [type.googleapis.com/kvmix.UniformOptions] { key_bits: 16 value_bits: 16 }
    }
  }
  eviction_policy { name: "sink_window" }
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

// To the byte on the emulator. A device hands memory out in pages of 2 MiB, and
// keeps code and graphs in it.
void ExpectTheDriverCountsWhatIsBilled(const Timings& timings) {
  const bool emulated =
      absl::StrContains(timings.cuda_device(0), "CUDA emulator");
  const int64_t slack = emulated ? 0 : int64_t{512} << 20;
  const DeviceMemoryRecord& memory = timings.device_memory();
  EXPECT_GT(memory.model(), 0);
  EXPECT_GT(memory.passes(), 0);
  EXPECT_GE(memory.in_use(), memory.model() + memory.passes());
  EXPECT_LE(memory.in_use(), memory.model() + memory.passes() + slack);
  for (const MethodSpeed& speed : timings.speed()) {
    EXPECT_GT(speed.cache_bytes(), 0) << speed.method();
    EXPECT_NEAR(speed.device_bytes(), speed.cache_bytes(), slack)
        << speed.method();
  }
}

void ExpectTheCpusRecord(const ExperimentResult& cuda,
                         const ExperimentResult& cpu) {
  EXPECT_EQ(cpu.record.model().device(), "CPU");
  EXPECT_EQ(cuda.record.model().device(), "CUDA");
  EXPECT_NE(cpu.record.fingerprint(), cuda.record.fingerprint());
  ASSERT_EQ(cuda.record.method_size(), cpu.record.method_size());
  for (int m = 0; m < cpu.record.method_size(); ++m) {
    const MethodRecord& want = cpu.record.method(m);
    const MethodRecord& got = cuda.record.method(m);
    EXPECT_EQ(PrintTextProto(got.plan()), PrintTextProto(want.plan()));
    // Profiles that need the model are the device's own.
    const bool without_model =
        want.profile().empty() || absl::StartsWith(want.name(), "random");
    EXPECT_EQ(got.profile().empty(), want.profile().empty());
    EXPECT_EQ(got.profile() == want.profile(), without_model) << want.name();
    EXPECT_THAT(got.attention_kernels(), HasSubstr("tensor cores"));
    ASSERT_EQ(got.dataset_size(), want.dataset_size());
    for (int d = 0; d < want.dataset_size(); ++d) {
      ExpectSameQuality(
          got.dataset(d).quality(), want.dataset(d).quality(),
          absl::StrCat(want.name(), " on ", want.dataset(d).name()));
      EXPECT_GT(got.dataset(d).memory().bytes(), 0);
    }
  }
  EXPECT_GT(cuda.timings.speed(3).decode(), 0);
  ExpectTheDriverCountsWhatIsBilled(cuda.timings);
  EXPECT_FALSE(cpu.timings.has_device_memory());
  EXPECT_EQ(cpu.timings.speed(0).device_bytes(), 0);
}

TEST(CudaExperimentTest, RecordIsTheCpusWithinRounding) {
  ASSERT_OK_AND_ASSIGN(const ExperimentResult cpu, RunSmall("", "cpu"));
  ASSERT_OK_AND_ASSIGN(
      const ExperimentResult cuda,
      RunSmall("model { device: CUDA check_against: CPU }", "cuda"));
  ExpectTheCpusRecord(cuda, cpu);
}

#ifndef __SANITIZE_ADDRESS__  // which takes minutes
// The main job: all of its methods, stages and datasets, and fewer tokens
// (docs/results/emulated_cuda.md).
absl::StatusOr<ExperimentResult> RunQuickstart(const std::string& device) {
  KVMIX_ASSIGN_OR_RETURN(
      ExperimentConfig config,
      LoadUnresolvedConfig("experiments/configs/quickstart.textproto",
                           {absl::StrCat("model.device=", device)}));
  const auto shorten = [](SyntheticDocuments& text) {
    text.set_documents(1);
    text.set_tokens(160);
    if (text.task() == "story") return;
    text.set_facts(4);
    text.set_questions(4);
  };
  for (Dataset& dataset : *config.mutable_dataset())
    shorten(*dataset.mutable_synthetic());
  shorten(*config.mutable_profile()->mutable_dataset()->mutable_synthetic());
  config.mutable_profile()->set_num_prompts(1);
  config.mutable_speed()->set_prompt_tokens(100);
  config.mutable_speed()->set_decode_tokens(4);
  config.mutable_speed()->set_rounds(1);
  config.set_output(EmptyFolder(absl::StrCat("quickstart_", device)));
  KVMIX_RETURN_IF_ERROR(ResolveConfig(config));
  return RunExperiment(config);
}

TEST(CudaExperimentTest, QuickstartsRecordIsTheCpusWithinRounding) {
  ASSERT_OK_AND_ASSIGN(const ExperimentResult cpu, RunQuickstart("CPU"));
  ASSERT_EQ(cpu.record.method_size(), 8);
  ASSERT_OK_AND_ASSIGN(const ExperimentResult cuda, RunQuickstart("CUDA"));
  ExpectTheCpusRecord(cuda, cpu);
}
#endif

TEST(CudaExperimentTest, WhatTheDeviceCannotDoIsSaidBeforeTheRun) {
  EXPECT_THAT(
      RunSmall("model { device: CUDA compute: INT8 }", "int8").status(),
      StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("compute INT8")));
  EXPECT_THAT(RunSmall("model { device: CUDA attention_arithmetic: INT8 }",
                       "arithmetic")
                  .status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("model.attention_arithmetic")));
  EXPECT_THAT(
      RunSmall("model { device: CUDA compute: BFLOAT16 }", "bf16").status(),
      StatusIs(absl::StatusCode::kFailedPrecondition,
               HasSubstr("gradients need compute: FLOAT32")));
  EXPECT_THAT(RunSmall("model { check_against: CPU }", "check").status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("model.check_against")));
}

}  // namespace
}  // namespace kvmix
