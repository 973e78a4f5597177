#include "experiments/windows.h"

#include <string>

#include "experiments/loaded_model.h"
#include "experiments/synthetic/synthetic_text.h"
#include "experiments/text_proto.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::kvmix::testing::StatusIs;
using ::testing::HasSubstr;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr int kContext = 4096;

class WindowsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(tokenizer_, LoadTokenizerOf("embedded"));
  }
  Dataset TextDataset(const std::string& text, int context_length,
                      int64_t max_tokens = 0) {
    Dataset dataset;
    dataset.set_name("text");
    dataset.set_path(::testing::TempDir() + "/text.txt");
    EXPECT_OK(WriteFileAtomically(dataset.path(), text));
    dataset.set_context_length(context_length);
    dataset.set_max_tokens(max_tokens);
    return dataset;
  }
  absl::StatusOr<std::vector<Window>> Load(const Dataset& dataset) {
    return LoadWindows(dataset, 1, *tokenizer_, kContext);
  }
  std::unique_ptr<Tokenizer> tokenizer_;
};

Dataset RecallDataset() {
  Dataset dataset;
  EXPECT_OK(ParseTextProto(
      R"(name: "recall" synthetic { task: "recall" documents: 3 tokens: 500
         facts: 16 questions: 8 confusable: 1 copy_length: 12 hops: 2 })",
      "test", dataset));
  return dataset;
}

// One byte is one token: bytes of digits are no words of the vocabulary.
TEST_F(WindowsTest, CutsTextIntoWindowsThatStartWithBos) {
  ASSERT_OK_AND_ASSIGN(const auto windows,
                       Load(TextDataset("0123456789012345", 6)));
  ASSERT_EQ(windows.size(), 3u);  // BOS and 5 digits each; the last is left out
  EXPECT_EQ(windows[0].tokens,
            (std::vector<int32_t>{kBeginOfSequence, '0', '1', '2', '3', '4'}));
  EXPECT_EQ(windows[2].tokens[1], '0');
  EXPECT_EQ(windows[0].prompt_tokens, 6);
}

TEST_F(WindowsTest, MaxTokensEndsTheText) {
  ASSERT_OK_AND_ASSIGN(const auto windows,
                       Load(TextDataset("0123456789012345", 6, 10)));
  EXPECT_EQ(windows.size(), 2u);
}

TEST_F(WindowsTest, AShortTextIsOneWindow) {
  ASSERT_OK_AND_ASSIGN(const auto windows, Load(TextDataset("01 2", 1000)));
  ASSERT_EQ(windows.size(), 1u);
  EXPECT_EQ(windows[0].tokens.size(), 5u);
  EXPECT_EQ(windows[0].words, 2);
}

TEST_F(WindowsTest, LinesAreWindowsOfTheirOwn) {
  Dataset dataset = TextDataset("012\n\n  \n345678\n", 5);
  dataset.set_split(Dataset::LINES);
  ASSERT_OK_AND_ASSIGN(const auto windows, Load(dataset));
  ASSERT_EQ(windows.size(), 2u);
  EXPECT_EQ(windows[0].tokens.size(), 4u);
  EXPECT_EQ(windows[1].tokens.size(), 5u);  // cut
}

TEST_F(WindowsTest, RefusesWhatCannotBeScored) {
  EXPECT_THAT(Load(TextDataset("", 16)),
              StatusIs(kInvalid, HasSubstr("no text")));
  EXPECT_THAT(Load(TextDataset(" \n\t", 16)),
              StatusIs(kInvalid, HasSubstr("no text")));
  EXPECT_THAT(Load(TextDataset("0", 16)),
              StatusIs(kInvalid, HasSubstr("no window of two tokens")));
  EXPECT_THAT(Load(TextDataset("abc\xff"
                               "def",
                               16)),
              StatusIs(kInvalid, HasSubstr("invalid byte at offset 3")));
  EXPECT_THAT(Load(TextDataset("abc", kContext + 1)),
              StatusIs(kInvalid, HasSubstr("the model's context is 4096")));
  Dataset missing = TextDataset("abc", 16);
  missing.set_path("no/such/text");
  EXPECT_THAT(Load(missing),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("no/such/text")));
  Dataset task = RecallDataset();
  task.mutable_synthetic()->set_task("juggle");
  EXPECT_THAT(Load(task), StatusIs(kInvalid, HasSubstr("juggle")));
  Dataset longer = RecallDataset();
  longer.mutable_synthetic()->set_tokens(kContext);
  EXPECT_THAT(Load(longer),
              StatusIs(kInvalid, HasSubstr("make context_length")));
}

// The generator counts tokens itself; the tokenizer must find the same ones.
TEST_F(WindowsTest, AnswersAreTheTokensThatTheGeneratorMeans) {
  const Dataset dataset = RecallDataset();
  ASSERT_OK_AND_ASSIGN(const auto windows, Load(dataset));
  SyntheticTextOptions options;
  options.tokens = 500;
  options.facts = 16;
  options.questions = 8;
  for (int i = 0; i < 3; ++i) {
    ASSERT_OK_AND_ASSIGN(
        const SyntheticDocument document,
        GenerateSyntheticDocument(SyntheticTask::kRecall, options, 1, i));
    ASSERT_EQ(windows[i].tokens.size(), document.token_ids.size() + 1);  // BOS
    ASSERT_EQ(windows[i].answers.size(), document.answers.size());
    for (size_t a = 0; a < document.answers.size(); ++a) {
      EXPECT_EQ(windows[i].answers[a].begin,
                document.answers[a].begin_token + 1);
      EXPECT_EQ(windows[i].answers[a].count, document.answers[a].token_count);
    }
    EXPECT_EQ(windows[i].prompt_tokens, document.answers[0].question_token + 1);
  }
}

TEST_F(WindowsTest, PromptsLieBehindTheEvaluatedTokens) {
  ExperimentConfig config;
  *config.add_dataset() = TextDataset("0123456789abcdef", 5, 8);
  config.mutable_profile()->set_num_prompts(2);
  config.mutable_profile()->set_prompt_tokens(4);
  ASSERT_OK_AND_ASSIGN(const auto prompts,
                       LoadPrompts(config, *tokenizer_, kContext));
  ASSERT_EQ(prompts.size(), 2u);
  EXPECT_EQ(prompts[0],
            (std::vector<int32_t>{kBeginOfSequence, '8', '9', 'a'}));
  config.mutable_profile()->set_num_prompts(3);
  EXPECT_THAT(LoadPrompts(config, *tokenizer_, kContext),
              StatusIs(kInvalid, HasSubstr("profile.num_prompts is 3")));
}

TEST_F(WindowsTest, FingerprintsDependOnWhereSequencesEnd) {
  EXPECT_NE(FingerprintOf({{1, 2}, {3}}), FingerprintOf({{1}, {2, 3}}));
  EXPECT_EQ(FingerprintOf({{1, 2}}), FingerprintOf({{1, 2}}));
}

}  // namespace
}  // namespace kvmix
