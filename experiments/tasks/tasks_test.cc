#include <algorithm>
#include <filesystem>

#include "experiments/config.h"
#include "experiments/loaded_model.h"
#include "experiments/run_experiment.h"
#include "experiments/small_experiment.h"
#include "experiments/tasks/summaries.h"
#include "experiments/tasks/task.h"
#include "experiments/text_proto.h"
#include "experiments/windows.h"
#include "kvmix/base/file.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::kvmix::testing::EmptyFolder;
using ::kvmix::testing::SmallExperiment;
using ::kvmix::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::SizeIs;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

std::string WriteLines(const std::string& name, const std::string& text) {
  const std::string path = ::testing::TempDir() + "/" + name;
  EXPECT_OK(WriteFileAtomically(path, text));
  return path;
}

// What the registry's task makes of the options, given as text.
absl::StatusOr<std::vector<Window>> Samples(const std::string& task,
                                            const std::string& type,
                                            const std::string& options,
                                            int limit = 0) {
  static const auto* tokenizer = LoadTokenizerOf("embedded").value().release();
  Component component;
  const absl::Status parsed = ParseTextProto(
      absl::StrCat("name: \"", task, "\" options { [type.googleapis.com/kvmix.",
                   type, "] {", options, "} }"),
      "test", component);
  if (!parsed.ok()) return parsed;
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<Task> made,
                         Registry<Task>::Get().Make(component, "task"));
  return made->Samples({.tokenizer = tokenizer,
                        .seed = 1,
                        .max_position = 4096,
                        .limit = limit});
}

std::string TextOf(const Window& window, const Window::Span& span) {
  static const auto* tokenizer = LoadTokenizerOf("embedded").value().release();
  return tokenizer
      ->Decode(
          absl::MakeConstSpan(window.tokens).subspan(span.begin, span.count))
      .value();
}

TEST(TasksTest, EveryTaskOfTheSyntheticSuiteMakesItsDocuments) {
  int kinds = 0;
  for (const auto& [name, entry] : Registry<Task>::Get().entries()) {
    if (entry.options->name() != "SyntheticTaskOptions") continue;
    ++kinds;
    ASSERT_OK_AND_ASSIGN(const std::vector<Window> windows,
                         Samples(name, "SyntheticTaskOptions",
                                 "tokens: 1300 tokens: 2000 documents: 2", 3));
    EXPECT_THAT(windows, SizeIs(3)) << name;
    EXPECT_FALSE(windows[0].answers.empty()) << name;
  }
  EXPECT_EQ(kinds, 10);
}

TEST(TasksTest, ANeedleStandsWhereItsDepthSays) {
  ASSERT_OK_AND_ASSIGN(const std::vector<Window> windows,
                       Samples("needle_confusable", "SyntheticTaskOptions",
                               "tokens: 1000 depth: 0 depth: 1 documents: 1"));
  ASSERT_THAT(windows, SizeIs(2));
  for (const Window& window : windows) {
    ASSERT_THAT(window.answers, SizeIs(1));
    // " q5" behind " #7f3": the record is the other place of the same value
    // behind the same key.
    const Window::Span& answer = window.answers[0];
    const std::vector<int32_t> asked(
        window.tokens.begin() + answer.begin - 3,
        window.tokens.begin() + answer.begin + answer.count);
    const auto at = std::search(window.tokens.begin(), window.tokens.end(),
                                asked.begin(), asked.end());
    const double place =
        static_cast<double>(at - window.tokens.begin()) / window.context_tokens;
    EXPECT_NEAR(place, window.depth, 0.15);
  }
}

TEST(TasksTest, BadLinesAreNamedByNumberAndTheRestCounted) {
  const std::string path = WriteLines(
      "bad.jsonl",
      "{\"prompt\": \"Tom the baker\"}\n\nnot json\n[1]\n{\"prompt\": 3}\n"
      "{\"prompt\": \"Ann\", \"group\": \"a\"}\n");
  const std::string option = absl::StrCat("path: \"", path, "\"");
  EXPECT_THAT(
      Samples("prompts", "PromptsOptions", option),
      StatusIs(kInvalid, AllOf(HasSubstr("3 bad lines, 2 good ones"),
                               HasSubstr("line 3: is not valid JSON"),
                               HasSubstr("line 4: is not a JSON object"),
                               HasSubstr("line 5: \"prompt\" is not a text"))));
  ASSERT_OK_AND_ASSIGN(
      const std::vector<Window> windows,
      Samples("prompts", "PromptsOptions", option + " skip_bad_lines: true"));
  ASSERT_THAT(windows, SizeIs(2));
  EXPECT_EQ(windows[1].group, "a");
  EXPECT_THAT(Samples("prompts", "PromptsOptions", "path: \"/none.jsonl\""),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/none.jsonl")));
}

TEST(TasksTest, FewShotPutsExamplesInFrontAndJudgesTheNumber) {
  const std::string path =
      WriteLines("math.jsonl",
                 "{\"question\": \"1+1?\", \"answer\": \"two #### 2\"}\n"
                 "{\"question\": \"2+2?\", \"answer\": \"four #### 4\"}\n");
  ASSERT_OK_AND_ASSIGN(const std::vector<Window> windows,
                       Samples("few_shot", "FewShotOptions",
                               absl::StrCat("path: \"", path, "\" shots: 1")));
  ASSERT_THAT(windows, SizeIs(1));
  EXPECT_EQ(windows[0].prompt,
            "Question: 1+1?\nAnswer: two #### 2\n\nQuestion: 2+2?\nAnswer:");
  const std::string text = "it is 4.\n\nQuestion";
  const std::vector<int32_t> ids(text.begin(), text.end());  // bytes are tokens
  EXPECT_TRUE(windows[0].is_finished(ids));
  ASSERT_OK_AND_ASSIGN(const JudgedText judged, windows[0].judge(ids));
  EXPECT_EQ(judged.text, "it is 4.");
  EXPECT_EQ(judged.score, 1);
}

TEST(TasksTest, FewShotTakesAsManyExamplesAsAskedFor) {
  const std::string path = WriteLines(
      "asked.jsonl", "{\"question\": \"1+1?\", \"answer\": \"2\"}\n");
  const std::string one = absl::StrCat("path: \"", path, "\" ");
  ASSERT_OK_AND_ASSIGN(const std::vector<Window> windows,
                       Samples("few_shot", "FewShotOptions", one + "shots: 0"));
  ASSERT_THAT(windows, SizeIs(1));
  EXPECT_EQ(windows[0].prompt, "Question: 1+1?\nAnswer:");
  EXPECT_THAT(Samples("few_shot", "FewShotOptions", one),  // 4 by default
              StatusIs(kInvalid, HasSubstr("has 1 lines but 4 are needed")));
  EXPECT_THAT(Samples("few_shot", "FewShotOptions",
                      absl::StrCat(one, "shots: 2 shots_path: \"", path, "\"")),
              StatusIs(kInvalid, HasSubstr("has 1 examples but shots is 2")));
}

TEST(TasksTest, ListsOfWordsHaveNoDepth) {
  EXPECT_THAT(Samples("common_words", "SyntheticTaskOptions", "depth: 0.5"),
              StatusIs(kInvalid, HasSubstr("depth")));
}

TEST(TasksTest, LongPromptsLoseTheirMiddle) {
  const std::string path =
      WriteLines("long.jsonl",
                 absl::StrCat("{\"context\": \"<", std::string(500, 'm'),
                              ">\", \"input\": \"Z\", \"answers\": [\"q\"]}"));
  ASSERT_OK_AND_ASSIGN(
      const std::vector<Window> windows,
      Samples("long_bench", "LongBenchOptions",
              absl::StrCat("path: \"", path,
                           "\" context_length: 100 max_tokens: 20 prompt: "
                           "\"{context}{input}\"")));
  const Window& window = windows[0];
  EXPECT_THAT(window.tokens, SizeIs(80));
  const Window::Span all = {.begin = 1, .count = 79};
  EXPECT_EQ(TextOf(window, all).front(), '<');
  EXPECT_EQ(TextOf(window, all).substr(77), ">Z");
}

TEST(TasksTest, ChoicesAreWindowsOfOneItem) {
  const std::string path = WriteLines(
      "choice.jsonl",
      "{\"query\": \"Sky\", \"choices\": [\"blue\", \"red\"], \"gold\": 1}\n");
  ASSERT_OK_AND_ASSIGN(const std::vector<Window> windows,
                       Samples("multiple_choice", "MultipleChoiceOptions",
                               absl::StrCat("path: \"", path, "\"")));
  ASSERT_THAT(windows, SizeIs(2));
  EXPECT_FALSE(windows[0].right_choice);
  EXPECT_TRUE(windows[1].right_choice);
  EXPECT_EQ(TextOf(windows[1], windows[1].answers[0]), " red");
  const std::string wrong =
      WriteLines("wrong.jsonl",
                 "{\"query\": \"Sky\", \"choices\": [\"a\", \"b\"], "
                 "\"gold\": 2}\n");
  EXPECT_THAT(Samples("multiple_choice", "MultipleChoiceOptions",
                      absl::StrCat("path: \"", wrong, "\"")),
              StatusIs(kInvalid, HasSubstr("not the index of a choice")));
}

// Two items; full precision is right in both, the method in the first.
TEST(TaskSummaryTest, TheLikeliestChoiceCounts) {
  std::vector<WindowRecord> windows(4);
  const double own[] = {1, 2, 4, 3}, full[] = {1, 2, 3, 4};
  for (int i = 0; i < 4; ++i) {
    windows[i].set_item(1 + i / 2);
    windows[i].set_right_choice(i % 2 == 0);
    windows[i].set_choice_length(1);
    AnswerSpan* answer = windows[i].add_answer();
    answer->set_count(1);
    windows[i].add_method()->add_nll(full[i]);
    windows[i].add_method()->add_nll(own[i]);
  }
  const TaskQuality quality = SummarizeTask(windows, 1, "accuracy");
  EXPECT_EQ(quality.samples(), 2);
  EXPECT_EQ(quality.score(), 0.5);
  EXPECT_EQ(quality.score_difference(), -0.5);
  // Scores 1 and 0: standard deviation sqrt(1/2), over sqrt(2).
  EXPECT_DOUBLE_EQ(quality.score_stderr(), 0.5);
}

// Sixteen bins of two tokens; only the longer window has the last eight.
TEST(TaskSummaryTest, PositionsAreMeansOverTheirTokens) {
  std::vector<WindowRecord> windows(2);
  for (int w = 0; w < 2; ++w) {
    for (int m = 0; m < 2; ++m) {
      WindowMethod& method = *windows[w].add_method();
      for (int i = 0; i < (w == 0 ? 32 : 16); ++i) {
        method.add_kl(m * i);
        method.add_nll(1 + m * 0.5 * i);
      }
    }
  }
  DatasetRecord dataset;
  AddTaskSummaries(windows, 1, "", dataset);
  ASSERT_EQ(dataset.position_size(), 16);
  const PositionRecord& first = dataset.position(0);
  EXPECT_EQ(first.begin(), 1);  // the window's first token is not scored
  EXPECT_EQ(first.end(), 3);
  EXPECT_DOUBLE_EQ(first.kl_mean(), 0.5);
  EXPECT_DOUBLE_EQ(first.nll_difference(), 0.25);
  const PositionRecord& last = dataset.position(15);
  EXPECT_EQ(last.begin(), 31);
  EXPECT_EQ(last.end(), 33);
  EXPECT_DOUBLE_EQ(last.kl_mean(), 30.5);
  EXPECT_DOUBLE_EQ(last.nll_difference(), 15.25);
}

constexpr char kOneBit[] = R"(
speed { skip: true }
method {
  name: "1 bit"
  bit_allocator {
    name: "uniform"
    options {
      [type.googleapis.com/kvmix.UniformOptions] { key_bits: 1 value_bits: 1 }
    }
  }
}
)";

absl::StatusOr<RunRecord> RunTask(const std::string& dataset, int threads,
                                  const CellFolders* cell = nullptr) {
  KVMIX_ASSIGN_OR_RETURN(ExperimentConfig config,
                         SmallExperiment(absl::StrCat(kOneBit, dataset)));
  config.set_output(EmptyFolder(absl::StrCat("tasks_", threads)));
  config.set_threads(threads);
  KVMIX_RETURN_IF_ERROR(ResolveConfig(config));
  KVMIX_ASSIGN_OR_RETURN(const ExperimentResult result,
                         RunExperiment(config, nullptr, cell));
  return result.record;
}

TEST(TasksTest, ContinuationsOfPromptsAreScoredByGroup) {
  const std::string path = WriteLines(
      "groups.jsonl",
      "{\"prompt\": \"Tom the baker\", \"group\": \"a\", \"completion\": "
      "\"found a lamp\"}\n"
      "{\"prompt\": \"Ann\", \"group\": \"b\", \"completion\": \"x\"}\n");
  const std::string dataset = absl::StrCat(
      "dataset { task { name: \"prompts\" options { "
      "[type.googleapis.com/kvmix.PromptsOptions] { continue_tokens: 12 path: "
      "\"",
      path, "\" } } } }");
  ASSERT_OK_AND_ASSIGN(const RunRecord record, RunTask(dataset, 1));
  const DatasetRecord& full = record.method(0).dataset(0);
  EXPECT_EQ(full.task().samples(), 2);
  EXPECT_EQ(full.task().metric(), "F1");
  EXPECT_EQ(full.group_size(), 2);
  EXPECT_GT(full.memory().bytes(), 0);
  const std::string folder = EmptyFolder("cell");
  const CellFolders cell = {.results = folder,
                            .full_precision = folder + "/full",
                            .full_precision_gib = 1};
  for (int threads : {2, 3}) {  // the second finds full precision there
    ASSERT_OK_AND_ASSIGN(const RunRecord again,
                         RunTask(dataset, threads, &cell));
    EXPECT_EQ(PrintTextProto(again), PrintTextProto(record));
    std::filesystem::remove_all(folder + "/windows");
  }
}

// The suite must tell a cache that is good from one that is not.
TEST(TasksTest, NeedlesAreFoundInFullPrecisionAndLostAtOneBit) {
  ASSERT_OK_AND_ASSIGN(
      const RunRecord record,
      RunTask("dataset { task { name: \"needle_confusable\" options { "
              "[type.googleapis.com/kvmix.SyntheticTaskOptions] { tokens: 700 "
              "documents: 3 depth: 0 depth: 0.5 depth: 1 } } } }",
              2));
  const DatasetRecord& full = record.method(0).dataset(0);
  EXPECT_EQ(full.place_size(), 3);
  EXPECT_GE(full.quality().answers().accuracy(), 0.95);
  EXPECT_LE(record.method(1).dataset(0).quality().answers().accuracy(), 0.7);
  EXPECT_EQ(full.position_size(), 16);
}

TEST(TasksTest, WrongDatasetsAreRefused) {
  EXPECT_THAT(RunTask("dataset { task { name: \"chess\" } }", 1),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("chess")));
  EXPECT_THAT(RunTask("dataset { path: \"x\" task { name: \"copy\" } }", 1),
              StatusIs(kInvalid, HasSubstr("exactly one of path")));
  EXPECT_THAT(RunTask("dataset { path: \"x\" limit: 3 }", 1),
              StatusIs(kInvalid, HasSubstr("limit is for tasks")));
}

}  // namespace
}  // namespace kvmix
