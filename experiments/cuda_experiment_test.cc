// A whole experiment on a CUDA device, or on the emulator, against the same one
// on the CPU.
#include <string>

#include "absl/strings/str_cat.h"
#include "experiments/config.h"
#include "experiments/cuda_record_testing.h"
#include "experiments/run_experiment.h"
#include "experiments/small_experiment.h"
#include "experiments/text_proto.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::kvmix::testing::EmptyFolder;
using ::kvmix::testing::ExpectTheCpusRecord;
using ::kvmix::testing::QualityTolerance;
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

// Of a few hundred tokens.
constexpr QualityTolerance kTolerance = {.nll = 0.005,
                                         .full_precision_nll = 0.0005,
                                         .kl = 0.002,
                                         .kl_of_itself = 0.1};

TEST(CudaExperimentTest, RecordIsTheCpusWithinRounding) {
  ASSERT_OK_AND_ASSIGN(const ExperimentResult cpu, RunSmall("", "cpu"));
  ASSERT_OK_AND_ASSIGN(
      const ExperimentResult cuda,
      RunSmall("model { device: CUDA check_against: CPU }", "cuda"));
  ExpectTheCpusRecord(cuda, cpu, kTolerance);
}

#ifndef __SANITIZE_ADDRESS__  // which takes minutes
// The main job: all of its methods, stages and datasets, and fewer tokens. The
// whole of it takes minutes: cuda_quickstart_test.
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
  ExpectTheCpusRecord(cuda, cpu, kTolerance);
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
