// What is written for Slurm and said to it; slurm_cluster_test.sh runs it.
#include "experiments/sweep/slurm.h"

#include <cstdlib>
#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

namespace fs = std::filesystem;
using ::kvmix::testing::StatusIs;
using ::testing::HasSubstr;
using ::testing::Not;

class SlurmTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = absl::StrCat(
        ::testing::TempDir(), "/slurm it's ",
        ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(path_);
    manifest_.set_name("bits & co");
    for (const char* key : {"k0", "k1", "k2"})
      manifest_.add_cell()->set_key(key);
  }

  SweepFolder Folder() {
    absl::StatusOr<SweepFolder> folder = SweepFolder::Create(path_, manifest_);
    EXPECT_OK(folder);
    return *std::move(folder);
  }

  // A program that Slurm would bring. It notes its arguments in said.txt.
  void Pretend(const std::string& program, const std::string& script) {
    const std::string file = path_ + "/bin/" + program;
    ASSERT_OK(WriteFileAtomically(
        file, absl::StrCat("#!/bin/sh\necho ", program, " \"$@\" >> \"", path_,
                           "/said.txt\"\n", script, "\n")));
    fs::permissions(file, fs::perms::owner_all);
    setenv("PATH", absl::StrCat(path_, "/bin:/usr/bin:/bin").c_str(), 1);
  }

  std::string Said() { return ReadFile(path_ + "/said.txt").value_or(""); }

  std::string path_;
  SweepManifest manifest_;
};

TEST_F(SlurmTest, ATaskForEachOpenCellAndEveryOptionWhereItBelongs) {
  const SweepFolder folder = Folder();
  ASSERT_OK(WriteFileAtomically(
      folder.CellPath(manifest_.cell(1)) + "/record.textproto", ""));
  const SlurmOptions options = {.partition = "long",
                                .account = "lab",
                                .time = "2:00:00",
                                .memory = "8G",
                                .gpus = "a100:1",
                                .threads = 3,
                                .at_a_time = 5,
                                .retry_failed = false};
  ASSERT_OK_AND_ASSIGN(const SlurmScripts scripts,
                       MakeSlurmScripts(folder, options, "/opt/kv mix"));
  EXPECT_EQ(scripts.tasks, 2);
  for (const char* line :
       {"#!/bin/bash\n#SBATCH --job-name=kvmix_bits___co\n",
        "\n#SBATCH --requeue\n", "\n#SBATCH --open-mode=append\n",
        "\n#SBATCH --array=0-1%5\n", "\n#SBATCH --cpus-per-task=3\n",
        "\n#SBATCH --partition=long\n", "\n#SBATCH --account=lab\n",
        "\n#SBATCH --time=2:00:00\n", "\n#SBATCH --mem=8G\n",
        "\n#SBATCH --gres=gpu:a100:1\n", "\nkeys=(k0 k2)\n",
        "\nexec '/opt/kv mix' cell '"})
    EXPECT_THAT(scripts.array, HasSubstr(line));
  EXPECT_THAT(scripts.array, HasSubstr("/slurm it'\\''s "));  // for the shell
  // What one job needs to read records: no share of the cells' resources.
  EXPECT_THAT(scripts.report, HasSubstr("#SBATCH --partition=long\n"));
  EXPECT_THAT(scripts.report, Not(HasSubstr("--gres")));
  EXPECT_THAT(scripts.report, Not(HasSubstr("--array")));
  EXPECT_THAT(scripts.report, HasSubstr("'/opt/kv mix' report '"));
  ASSERT_OK_AND_ASSIGN(const SlurmScripts plain,
                       MakeSlurmScripts(folder, {}, "kvmix"));
  EXPECT_THAT(plain.array, HasSubstr("--array=0-1\n"));
  EXPECT_THAT(plain.array, Not(HasSubstr("--gres")));
  EXPECT_THAT(plain.array, Not(HasSubstr("--partition")));
}

TEST_F(SlurmTest, FailedCellsRunOnRequest) {
  const SweepFolder folder = Folder();
  ASSERT_OK(WriteFileAtomically(
      folder.CellPath(manifest_.cell(1)) + "/record.textproto", ""));
  for (int cell : {0, 2})
    ASSERT_OK(folder.MarkFailed(manifest_.cell(cell), "why"));
  EXPECT_THAT(MakeSlurmScripts(folder, {}, "kvmix"),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("is left to run; --retry_failed")));
  SlurmOptions retry;
  retry.retry_failed = true;
  ASSERT_OK_AND_ASSIGN(const SlurmScripts again,
                       MakeSlurmScripts(folder, retry, "kvmix"));
  EXPECT_THAT(again.array, HasSubstr("keys=(k0 k2)"));
}

TEST_F(SlurmTest, WhatASbatchLineCannotHoldIsRefused) {
  const SweepFolder folder = Folder();
  SlurmOptions options;
  options.memory = "8G\n#SBATCH --uid=0";
  EXPECT_THAT(
      MakeSlurmScripts(folder, options, "kvmix"),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--memory is")));
  path_ += "%";
  EXPECT_THAT(
      MakeSlurmScripts(Folder(), {}, "kvmix"),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--folder is")));
}

TEST_F(SlurmTest, TheReportWaitsForTheArray) {
  const SweepFolder folder = Folder();
  Pretend("sbatch", "echo '41;cluster'");
  ASSERT_OK_AND_ASSIGN(const std::string said, SubmitToSlurm(folder, {}));
  EXPECT_THAT(said, HasSubstr("job array 41: 3 of 3 cells"));
  EXPECT_THAT(Said(), HasSubstr("--dependency=afterany:41 "));
  // A second one while the first is queued, and after that.
  Pretend("squeue", "echo '41 queued'");
  EXPECT_THAT(SubmitToSlurm(folder, {}),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("jobs 41,41 of this sweep are still")));
  Pretend("squeue", "exit 1");
  EXPECT_OK(SubmitToSlurm(folder, {}));
}

TEST_F(SlurmTest, NoArrayIsLeftWithoutItsReport) {
  Pretend("sbatch", "case \"$*\" in *afterany*) exit 1;; esac; echo 7");
  Pretend("scancel", "");
  EXPECT_THAT(
      SubmitToSlurm(Folder(), {}),
      StatusIs(absl::StatusCode::kUnavailable, HasSubstr("afterany:7")));
  EXPECT_THAT(Said(), HasSubstr("scancel 7\n"));
}

TEST_F(SlurmTest, WithoutSlurmItIsSaid) {
  setenv("PATH", "/nowhere", 1);
  EXPECT_THAT(SubmitToSlurm(Folder(), {}),
              StatusIs(absl::StatusCode::kUnavailable,
                       HasSubstr("needs a machine from which sbatch")));
}

}  // namespace
}  // namespace kvmix
