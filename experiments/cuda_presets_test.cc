// Every method of experiments/presets on a CUDA device, or on the emulator:
// with kernels where there are some, else with its cache on the host, against
// the same experiment on the CPU.
#include <algorithm>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "experiments/config.h"
#include "experiments/cuda_record_testing.h"
#include "experiments/paths.h"
#include "experiments/run_experiment.h"
#include "experiments/small_experiment.h"
#include "experiments/text_proto.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::kvmix::testing::EmptyFolder;
using ::kvmix::testing::ExpectSameQuality;
using ::kvmix::testing::QualityTolerance;
using ::kvmix::testing::SmallExperiment;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;

// Enough tokens for windows of 128 to be left, and one more of a step.
constexpr char kConfig[] = R"(
dataset {
  name: "recall"
  synthetic { task: "recall" documents: 1 tokens: 140 facts: 5 questions: 3 }
}
evaluation { mode: EXACT_PREFILL prefill_tokens: 137 }
profile { num_prompts: 1 prompt_tokens: 24 }
)";

std::vector<std::string> Presets() {
  const auto some = ResolveInputPath("experiments/presets/kvmix.textproto");
  EXPECT_OK(some);
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(
           std::filesystem::path(*some).parent_path()))
    names.push_back(entry.path().stem().string());
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<ExperimentResult> RunPresets(
    const std::vector<std::string>& presets, const std::string& changes,
    const std::string& folder) {
  KVMIX_ASSIGN_OR_RETURN(ExperimentConfig config,
                         SmallExperiment(absl::StrCat(kConfig, changes)));
  for (const std::string& preset : presets)
    config.add_method()->set_preset(preset);
  config.set_output(EmptyFolder(folder));
  KVMIX_RETURN_IF_ERROR(ResolveConfig(config));
  return RunExperiment(config);
}

// Every chunk of the run on the device has been checked against the CPU, too.
constexpr QualityTolerance kTolerance = {.nll = 0.005,
                                         .full_precision_nll = 0.005,
                                         .kl = 0.002,
                                         .kl_of_itself = 0.1};
// Of `best`, most of whose codes have one bit: a path of a trellis that
// rounding turns is a token's whole row. On the CPU itself its divergence of
// 0.027 becomes 0.041 with compute: BFLOAT16.
constexpr QualityTolerance kToleranceOfBest = {
    .nll = 0.03, .full_precision_nll = 0.005, .kl = 0.002, .kl_of_itself = 0.8};

TEST(CudaPresetsTest, EveryPresetIsTheCpusWithinRounding) {
  const std::vector<std::string> presets = Presets();
  EXPECT_THAT(presets, IsSupersetOf({"best", "kvmix", "mikv", "kvquant"}));
  ASSERT_OK_AND_ASSIGN(const ExperimentResult cpu,
                       RunPresets(presets, "speed { skip: true }", "cpu"));
  ::testing::internal::CaptureStderr();
  const absl::StatusOr<ExperimentResult> cuda = RunPresets(
      presets, "speed { skip: true } model { device: CUDA check_against: CPU }",
      "cuda");
  const std::string told = ::testing::internal::GetCapturedStderr();
  ASSERT_OK(cuda.status());
  ASSERT_EQ(cuda->record.method_size(), 1 + static_cast<int>(presets.size()));
  std::set<std::string> on_host;
  for (int m = 0; m < cuda->record.method_size(); ++m) {
    const MethodRecord& got = cuda->record.method(m);
    const MethodRecord& want = cpu.record.method(m);
    ExpectSameQuality(got.dataset(0).quality(), want.dataset(0).quality(),
                      want.name() == "best" ? kToleranceOfBest : kTolerance,
                      want.name());
    EXPECT_EQ(want.why_on_host(), "");
    const std::string line = absl::StrCat("method ", got.name(),
                                          ": its cache lies in host memory, "
                                          "and the CPU attends to it: ",
                                          got.why_on_host(), "\n");
    if (got.why_on_host().empty()) {
      EXPECT_THAT(got.attention_kernels(), HasSubstr("tensor cores"));
      EXPECT_FALSE(absl::StrContains(told, "method " + got.name() + ":"));
    } else {
      on_host.insert(got.name());
      EXPECT_EQ(got.attention_kernels(),
                absl::StrCat("host: ", want.attention_kernels()));
      // Once.
      const std::vector<std::string> parts = absl::StrSplit(told, line);
      EXPECT_EQ(parts.size(), 2u) << line;
    }
  }
  EXPECT_THAT(on_host, IsSupersetOf({"best", "gear", "kvquant", "mikv", "qjl",
                                     "skvq", "turboquant"}));
  for (const char* has_kernels : {"FP16", "kivi", "kvmix", "kvtuner", "h2o",
                                  "snapkv", "adakv", "pyramidkv"})
    EXPECT_EQ(on_host.count(has_kernels), 0u) << has_kernels;
}

// What the driver counts is the device's alone.
TEST(CudaPresetsTest, ACacheOnTheHostTakesNoDeviceMemory) {
  ASSERT_OK_AND_ASSIGN(
      const ExperimentResult cuda,
      RunPresets({"turboquant"},
                 "model { device: CUDA } speed { prompt_tokens: 8 "
                 "decode_tokens: 3 rounds: 1 }",
                 "memory"));
  const MethodSpeed& full = cuda.timings.speed(0);
  const MethodSpeed& turbo = cuda.timings.speed(1);
  EXPECT_GT(turbo.decode(), 0);
  EXPECT_GT(turbo.cache_bytes(), 0);
  // To the byte on the emulator; a device hands memory out in pages.
  const bool emulated =
      absl::StrContains(cuda.timings.cuda_device(0), "CUDA emulator");
  EXPECT_NEAR(turbo.device_bytes(), 0, emulated ? 0 : int64_t{512} << 20);
  EXPECT_GE(full.device_bytes(), emulated ? full.cache_bytes() : 0);
  const auto notes = ReadFile(cuda.folder + "/table.md");
  ASSERT_OK(notes);
  EXPECT_THAT(*notes, HasSubstr("The cache of turboquant lay in host memory, "
                                "and the CPU attended to it: layer 0 keys: "
                                "quantizer \"turbo\" has no kernels on CUDA"));
  const auto metrics = ReadFile(cuda.folder + "/metrics.json");
  ASSERT_OK(metrics);
  EXPECT_THAT(*metrics,
              HasSubstr("\"why_on_host\": \"layer 0 keys: quantizer"));
}

}  // namespace
}  // namespace kvmix
