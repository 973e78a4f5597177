// The main job whole on the CUDA emulator, against the same one on the CPU. The
// figures stand in docs/results/emulated_cuda.md.
#include <string>

#include "absl/strings/str_cat.h"
#include "experiments/config.h"
#include "experiments/cuda_record_testing.h"
#include "experiments/run_experiment.h"
#include "experiments/small_experiment.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::kvmix::testing::EmptyFolder;
using ::kvmix::testing::ExpectTheCpusRecord;
using ::kvmix::testing::QualityTolerance;

// About three times the largest differences found, over 24,000 tokens of
// stories and 38,304 of recall with 288 answers: 0.0011 of a token's NLL
// (7e-6 at full precision), 0.00067 of a mean KL of 0.077, 0.00014 of one of
// 0.0045, two answers.
constexpr QualityTolerance kTolerance = {.nll = 0.003,
                                         .full_precision_nll = 2e-5,
                                         .kl = 0.0003,
                                         .kl_of_itself = 0.025,
                                         .accuracy = 0.02};

absl::StatusOr<ExperimentResult> RunQuickstart(const std::string& device) {
  KVMIX_ASSIGN_OR_RETURN(
      ExperimentConfig config,
      LoadUnresolvedConfig("experiments/configs/quickstart.textproto",
                           {absl::StrCat("model.device=", device)}));
  config.set_output(EmptyFolder(absl::StrCat("quickstart_", device)));
  KVMIX_RETURN_IF_ERROR(ResolveConfig(config));
  return RunExperiment(config);
}

TEST(CudaQuickstartTest, RecordIsTheCpusWithinRounding) {
  ASSERT_OK_AND_ASSIGN(const ExperimentResult cpu, RunQuickstart("CPU"));
  ASSERT_EQ(cpu.record.method_size(), 8);
  ASSERT_OK_AND_ASSIGN(const ExperimentResult cuda, RunQuickstart("CUDA"));
  ExpectTheCpusRecord(cuda, cpu, kTolerance);
}

}  // namespace
}  // namespace kvmix
