#include "experiments/sweep/sweep.h"

#include <algorithm>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "experiments/config.h"
#include "experiments/run_experiment.h"
#include "experiments/small_experiment.h"
#include "experiments/sweep/expand.h"
#include "experiments/sweep/full_precision_store.h"
#include "experiments/sweep/sweep_folder.h"
#include "experiments/sweep/sweep_table.h"
#include "experiments/text_proto.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

namespace fs = std::filesystem;
using ::kvmix::testing::EmptyFolder;
using ::kvmix::testing::SmallExperiment;
using ::kvmix::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

constexpr char kConfig[] = R"(
dataset { name: "stories" synthetic { task: "story" documents: 2 tokens: 90 } }
speed { skip: true }
method { name: "KVmix" bit_allocator { name: "top_fraction" } }
)";

constexpr char kFraction[] =
    R"(path: "method[1].bit_allocator.options.high_fraction")";

absl::StatusOr<SweepManifest> Expand(const std::string& sweep) {
  KVMIX_ASSIGN_OR_RETURN(
      const ExperimentConfig config,
      SmallExperiment(absl::StrCat(kConfig, "sweep {", sweep, "}")));
  return ExpandSweep(config);
}

std::vector<std::string> Names(const SweepManifest& manifest) {
  std::vector<std::string> names;
  for (const SweepCell& cell : manifest.cell())
    names.push_back(CellName(manifest, cell));
  return names;
}

TEST(ExpandSweepTest, AxesMultiplyAndTheLastIsFastest) {
  ASSERT_OK_AND_ASSIGN(
      const SweepManifest manifest,
      Expand(absl::StrCat("axis {", kFraction,
                          R"( value: "0" value: "0.5" } seed: 7 seed: 8)")));
  EXPECT_THAT(
      Names(manifest),
      ElementsAre("high_fraction=0 seed=7", "high_fraction=0 seed=8",
                  "high_fraction=0.5 seed=7", "high_fraction=0.5 seed=8"));
  EXPECT_EQ(manifest.cell(3).config().seed(), 8u);
  EXPECT_THAT(
      PrintTextProto(manifest.cell(3).config().method(1).bit_allocator()),
      HasSubstr("high_fraction: 0.5"));
}

TEST(ExpandSweepTest, ZippedFieldsChangeTogether) {
  ASSERT_OK_AND_ASSIGN(const SweepManifest manifest, Expand(R"(axis {
        path: "importance_estimator" value: "random" value: "gradient_norm"
        label: "chance" label: "gradients"
        zip { path: "method[1].name" value: "A" value: "B" }
      })"));
  EXPECT_THAT(Names(manifest), ElementsAre("importance_estimator=chance",
                                           "importance_estimator=gradients"));
  EXPECT_EQ(manifest.cell(0).config().method(1).name(), "A");
  EXPECT_EQ(manifest.cell(1).config().method(1).importance_estimator().name(),
            "gradient_norm");
}

TEST(ExpandSweepTest, WrongAxesAreRefusedByName) {
  EXPECT_THAT(Expand(""), StatusIs(absl::StatusCode::kOk, ::testing::_));
  EXPECT_THAT(Expand(R"(axis { path: "seed" })"),
              StatusIs(kInvalid, HasSubstr("(seed) has no value")));
  EXPECT_THAT(Expand(R"(axis { path: "sed" value: "1" })"),
              StatusIs(kInvalid, HasSubstr("has no field \"sed\"")));
  EXPECT_THAT(Expand(R"(axis { path: "seed" value: "1" value: "2"
                               zip { path: "threads" value: "1" } })"),
              StatusIs(kInvalid, HasSubstr("(threads) has 1 values but seed, "
                                           "with which it changes together, "
                                           "has 2")));
  EXPECT_THAT(Expand(R"(axis { path: "seed" value: "1" value: "1" })"),
              StatusIs(kInvalid, HasSubstr("are the same experiment")));
  EXPECT_THAT(Expand(absl::StrCat("axis {", kFraction, R"( value: "2" })")),
              StatusIs(kInvalid, HasSubstr("cell high_fraction=2")));
  ASSERT_OK_AND_ASSIGN(const ExperimentConfig config, SmallExperiment(kConfig));
  EXPECT_THAT(ExpandSweep(config), StatusIs(kInvalid, HasSubstr("no sweep")));
}

class SweepTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = EmptyFolder(absl::StrCat(
        "sweep_",
        ::testing::UnitTest::GetInstance()->current_test_info()->name()));
  }

  SweepFolder Make(const std::string& sweep) {
    absl::StatusOr<SweepManifest> manifest = Expand(sweep);
    EXPECT_OK(manifest);
    manifest->set_full_precision_gib(full_precision_gib_);
    absl::StatusOr<SweepFolder> folder = SweepFolder::Create(path_, *manifest);
    EXPECT_OK(folder);
    return *std::move(folder);
  }

  int CountFiles(const std::string& below, const std::string& ending) {
    int count = 0;
    if (!fs::exists(path_ + below)) return 0;
    for (const auto& file : fs::directory_iterator(path_ + below))
      count += file.path().extension() == ending;
    return count;
  }

  std::string path_;
  double full_precision_gib_ = 4;
};

TEST_F(SweepTest, CellsShareProfilesAndFullPrecisionAndChangeNothingByIt) {
  const std::string axis =
      absl::StrCat("axis {", kFraction, R"( value: "0.2" value: "0.5" })");
  const SweepFolder folder = Make(axis);
  for (const SweepCell& cell : folder.manifest().cell())
    ASSERT_OK(RunCell(folder, cell, 1, nullptr));
  EXPECT_EQ(CountFiles("/profiles", ".textproto"), 1);
  EXPECT_EQ(CountFiles("/full_precision", ".logits"), 2);  // windows
  ASSERT_OK(WriteSweepTables(folder));
  ASSERT_OK_AND_ASSIGN(const std::string shared,
                       ReadFile(path_ + "/table.csv"));
  fs::remove_all(path_);
  full_precision_gib_ = -1;
  const SweepFolder apart = Make(axis);
  for (const SweepCell& cell : apart.manifest().cell())
    ASSERT_OK(RunCell(apart, cell, 2, nullptr));
  EXPECT_EQ(CountFiles("/full_precision", ".logits"), 0);
  ASSERT_OK(WriteSweepTables(apart));
  ASSERT_OK_AND_ASSIGN(const std::string separate,
                       ReadFile(path_ + "/table.csv"));
  EXPECT_EQ(shared, separate);
}

TEST_F(SweepTest, ADamagedWindowOfFullPrecisionIsRunAgain) {
  const FullPrecisionStore store(path_, "test");
  {
    ASSERT_OK_AND_ASSIGN(auto entry, store.Open("window", 3));
    EXPECT_FALSE(entry.found());
    entry.Append({1.0f, 2.0f});
    entry.Append({3.0f});
    ASSERT_OK(entry.Keep("summary"));
  }
  {
    ASSERT_OK_AND_ASSIGN(const auto entry, store.Open("window", 3));
    ASSERT_TRUE(entry.found());
    EXPECT_EQ(entry.summary(), "summary");
    EXPECT_EQ(entry.logits()[2], 3.0f);
  }
  ASSERT_OK_AND_ASSIGN(const auto other, store.Open("other", 3));
  EXPECT_FALSE(other.found());
  ASSERT_OK_AND_ASSIGN(const auto cut, store.Open("window", 4));
  EXPECT_FALSE(cut.found());
}

TEST_F(SweepTest, WhatAKilledWriterLeftIsClearedAway) {
  const FullPrecisionStore store(path_, "test");
  std::string kept;
  {
    ASSERT_OK_AND_ASSIGN(auto entry, store.Open("window", 1));
    entry.Append({1.0f});
    ASSERT_OK(entry.Keep("summary"));
  }
  for (const auto& file : fs::directory_iterator(path_)) {
    if (file.path().extension() == ".logits") kept = file.path().string();
  }
  const std::string unfinished = kept + ".123.tmp";
  const std::string of_another = path_ + "/other.logits.123.tmp";
  ASSERT_OK(WriteFileAtomically(unfinished, "half"));
  ASSERT_OK(WriteFileAtomically(of_another, "half"));
  ASSERT_OK_AND_ASSIGN(const auto entry, store.Open("window", 1));
  EXPECT_TRUE(entry.found());
  EXPECT_FALSE(fs::exists(unfinished));
  EXPECT_TRUE(fs::exists(of_another));
}

TEST_F(SweepTest, AFolderKeepsItsSweep) {
  Make("seed: 1 seed: 2");
  EXPECT_OK(SweepFolder::Open(path_));
  ASSERT_OK_AND_ASSIGN(SweepManifest other, Expand("seed: 1 seed: 3 seed: 4"));
  EXPECT_THAT(SweepFolder::Create(path_, other),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("with 2 cells, this one \"small\" with 3")));
}

TEST_F(SweepTest, ASweepWhoseTextsHaveChangedIsNotContinued) {
  const std::string prompts = path_ + ".jsonl", file = path_ + ".textproto";
  ASSERT_OK_AND_ASSIGN(
      const ExperimentConfig config,
      SmallExperiment(
          absl::StrCat(kConfig, "dataset { task { name: \"prompts\" options { ",
                       "[type.googleapis.com/kvmix.PromptsOptions] { path: \"",
                       prompts, "\" } } } } sweep { seed: 1 seed: 2 }")));
  ASSERT_OK(WriteTextProto(config, file));
  ASSERT_OK(WriteFileAtomically(prompts, "{\"prompt\": \"Tom the baker\"}"));
  ASSERT_OK_AND_ASSIGN(const SweepManifest before, LoadSweep(file, {}));
  ASSERT_OK(SweepFolder::Create(path_, before));
  ASSERT_OK_AND_ASSIGN(const SweepManifest same, LoadSweep(file, {}));
  EXPECT_OK(SweepFolder::Create(path_, same));
  ASSERT_OK(WriteFileAtomically(prompts, "{\"prompt\": \"Ann the cook\"}"));
  ASSERT_OK_AND_ASSIGN(const SweepManifest after, LoadSweep(file, {}));
  EXPECT_THAT(SweepFolder::Create(path_, after),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr(prompts + " has changed since then")));
}

// Cells need not have the same datasets, so that their tables differ.
TEST_F(SweepTest, ATableKeepsColumnsOfAllCells) {
  const SweepFolder folder = Make(
      R"(axis { path: "dataset[0].synthetic" label: "stories" label: "recall"
           value: "{ task: 'story' documents: 1 tokens: 60 }"
           value: "{ task: 'recall' documents: 1 tokens: 60 facts: 2 questions: 1 }" })");
  for (const SweepCell& cell : folder.manifest().cell())
    ASSERT_OK(RunCell(folder, cell, 1, nullptr));
  ASSERT_OK_AND_ASSIGN(const Table table, WriteSweepTables(folder));
  ASSERT_THAT(table.rows, SizeIs(4));
  const auto column = [&](const std::string& name) {
    return std::find(table.header.begin(), table.header.end(), name) -
           table.header.begin();
  };
  const size_t right = column("stories right"), memory = column("memory");
  ASSERT_LT(right, table.header.size());
  ASSERT_LT(memory, table.header.size());
  EXPECT_EQ(table.rows[0][right], "");
  EXPECT_THAT(table.rows[2][right], HasSubstr("%"));
  for (const auto& row : table.rows) EXPECT_THAT(row[memory], HasSubstr("MiB"));
}

TEST_F(SweepTest, OneProgramAtATime) {
  const SweepFolder folder = Make("seed: 1");
  ASSERT_OK_AND_ASSIGN(const FileLock lock, FileLock::Try(path_ + "/lock"));
  const std::atomic<bool> stop = false;
  EXPECT_THAT(RunSweep(folder, {}, stop),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("another kvmix sweep is running")));
}

// /bin/false stands for a program whose cells fail.
TEST_F(SweepTest, FailuresAreKeptAndRetriedOnRequest) {
  const SweepFolder folder = Make("seed: 1 seed: 2");
  ASSERT_OK(RunCell(folder, folder.manifest().cell(1), 1, nullptr));
  const std::atomic<bool> stop = false;
  ASSERT_OK_AND_ASSIGN(const SweepOutcome first,
                       RunSweep(folder, {.program = "/bin/false"}, stop));
  EXPECT_EQ(first.done, 1);
  ASSERT_THAT(first.failed, SizeIs(1));
  EXPECT_EQ(folder.Failure(*first.failed[0]), "it printed nothing");
  ASSERT_OK_AND_ASSIGN(const SweepOutcome again,
                       RunSweep(folder, {.program = "/none"}, stop));
  EXPECT_THAT(again.failed, SizeIs(1));  // not tried
  EXPECT_THAT(
      RunSweep(folder, {.retry_failed = true, .program = "/none"}, stop),
      StatusIs(absl::StatusCode::kNotFound, HasSubstr("/none")));
}

}  // namespace
}  // namespace kvmix
