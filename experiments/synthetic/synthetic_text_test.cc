#include "experiments/synthetic/synthetic_text.h"

#include <cstddef>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvmix {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr SyntheticTask kTasks[] = {
    SyntheticTask::kRecall, SyntheticTask::kCopy,  SyntheticTask::kHop,
    SyntheticTask::kCount,  SyntheticTask::kStory, SyntheticTask::kMixture};

SyntheticTextOptions ShortContext() {
  SyntheticTextOptions options;
  options.tokens = 300;
  options.facts = 12;
  options.questions = 2;
  return options;
}

SyntheticDocument Generate(SyntheticTask task,
                           const SyntheticTextOptions& options, uint64_t seed,
                           uint64_t index) {
  auto document = GenerateSyntheticDocument(task, options, seed, index);
  EXPECT_TRUE(document.ok()) << document.status();
  return *document;
}

std::string Context(const SyntheticDocument& document) {
  return document.text.substr(0, document.context_bytes);
}

std::string Question(const SyntheticDocument& document, const Answer& answer) {
  return document.text.substr(answer.question, answer.begin - answer.question);
}

std::string AnswerText(const SyntheticDocument& document,
                       const Answer& answer) {
  return document.text.substr(answer.begin, answer.length);
}

TEST(SyntheticTextTest, TokensSpellTheText) {
  for (SyntheticTask task : kTasks) {
    for (Layout layout : {Layout::kQuestionsLast, Layout::kTraining}) {
      SyntheticTextOptions options = ShortContext();
      options.layout = layout;
      for (uint64_t index = 0; index < 20; ++index) {
        const SyntheticDocument document = Generate(task, options, 1, index);
        std::string spelled;
        for (int id : document.token_ids)
          absl::StrAppend(&spelled, SyntheticTokenText(id));
        EXPECT_EQ(spelled, document.text);
        EXPECT_EQ(document.classes.size(), document.token_ids.size());
      }
    }
  }
}

TEST(SyntheticTextTest, ContextAndTrainingDocumentHaveExactlyTheTokens) {
  for (SyntheticTask task : kTasks) {
    for (int tokens : {211, 212, 213, 2048}) {
      SyntheticTextOptions options = ShortContext();
      options.tokens = tokens;
      EXPECT_EQ(Generate(task, options, 1, 5).context_tokens, tokens);
      options.layout = Layout::kTraining;
      EXPECT_EQ(Generate(task, options, 1, 5).token_ids.size(),
                static_cast<size_t>(tokens));
    }
  }
}

TEST(SyntheticTextTest, ADocumentIsAFunctionOfSeedAndIndex) {
  for (SyntheticTask task : kTasks) {
    const SyntheticDocument document = Generate(task, ShortContext(), 7, 3);
    EXPECT_EQ(document.text, Generate(task, ShortContext(), 7, 3).text);
    EXPECT_NE(document.text, Generate(task, ShortContext(), 7, 4).text);
    EXPECT_NE(document.text, Generate(task, ShortContext(), 8, 3).text);
  }
}

TEST(SyntheticTextTest, AnswersInBytesAndInTokensAreTheSame) {
  for (SyntheticTask task : kTasks) {
    const SyntheticDocument document = Generate(task, ShortContext(), 1, 9);
    for (const Answer& answer : document.answers) {
      std::string question, text;
      for (int i = answer.question_token; i < answer.begin_token; ++i) {
        absl::StrAppend(&question, SyntheticTokenText(document.token_ids[i]));
      }
      for (int i = 0; i < answer.token_count; ++i) {
        absl::StrAppend(&text, SyntheticTokenText(
                                   document.token_ids[answer.begin_token + i]));
      }
      EXPECT_EQ(question, Question(document, answer));
      EXPECT_EQ(text, AnswerText(document, answer));
    }
  }
}

TEST(SyntheticTextTest, RecalledAndCopiedAnswersFollowTheirKeyOnceInContext) {
  for (SyntheticTask task : {SyntheticTask::kRecall, SyntheticTask::kCopy}) {
    for (uint64_t index = 0; index < 20; ++index) {
      const SyntheticDocument document =
          Generate(task, ShortContext(), 1, index);
      ASSERT_EQ(document.answers.size(), 2u);
      for (const Answer& answer : document.answers) {
        std::string key = Question(document, answer);
        if (task == SyntheticTask::kRecall) key = key.substr(2);  // " ?"
        const std::string context = Context(document);
        const size_t found = context.find(key);
        ASSERT_NE(found, std::string::npos) << key;
        EXPECT_EQ(context.find(key, found + 1), std::string::npos) << key;
        EXPECT_EQ(context.substr(found + key.size(), answer.length),
                  AnswerText(document, answer));
      }
    }
  }
}

TEST(SyntheticTextTest, TracesLeadThroughTheAssignmentsToTheValue) {
  SyntheticTextOptions options = ShortContext();
  options.hops = 3;
  for (uint64_t index = 0; index < 20; ++index) {
    const SyntheticDocument document =
        Generate(SyntheticTask::kHop, options, 1, index);
    for (const Answer& answer : document.answers) {
      const std::vector<std::string> steps = absl::StrSplit(
          Question(document, answer).substr(6) + AnswerText(document, answer),
          " =");
      EXPECT_EQ(steps.size(), 5u);  // the variable, 3 hops, the value
      for (size_t i = 0; i + 1 < steps.size(); ++i) {
        EXPECT_THAT(Context(document),
                    HasSubstr(steps[i] + " =" + steps[i + 1] + " ;"));
      }
    }
    options.hop_form = HopForm::kDirect;
    const SyntheticDocument direct =
        Generate(SyntheticTask::kHop, options, 1, index);
    options.hop_form = HopForm::kTrace;
    EXPECT_EQ(Context(direct), Context(document));
    for (size_t i = 0; i < direct.answers.size(); ++i) {
      const std::string trace = AnswerText(document, document.answers[i]);
      EXPECT_EQ(AnswerText(direct, direct.answers[i]),
                trace.substr(trace.size() - 3));
    }
  }
}

TEST(SyntheticTextTest, CountsAreTheNumberOfAdditions) {
  for (uint64_t index = 0; index < 20; ++index) {
    const SyntheticDocument document =
        Generate(SyntheticTask::kCount, ShortContext(), 1, index);
    for (const Answer& answer : document.answers) {
      const std::string added =
          " add" + Question(document, answer).substr(6) + " ;";
      int count = 0;
      const std::string context = Context(document);
      for (size_t at = context.find(added); at != std::string::npos;
           at = context.find(added, at + 1)) {
        ++count;
      }
      EXPECT_EQ(AnswerText(document, answer), std::to_string(count));
    }
  }
}

// Two keys of a family differ in one digit; two random keys rarely do.
int NumKeysWithANeighbour(double confusable) {
  SyntheticTextOptions options;
  options.facts = 32;
  options.confusable = confusable;
  const std::string context =
      Context(Generate(SyntheticTask::kRecall, options, 1, 0));
  std::vector<std::string> keys;
  for (size_t at = context.find('#'); at != std::string::npos;
       at = context.find('#', at + 1)) {
    keys.push_back(context.substr(at + 1, 3));
  }
  EXPECT_EQ(std::set<std::string>(keys.begin(), keys.end()).size(), 32u);
  int neighbours = 0;
  for (const std::string& a : keys) {
    for (const std::string& b : keys) {
      const int same = (a[0] == b[0]) + (a[1] == b[1]) + (a[2] == b[2]);
      if (same == 2) {
        ++neighbours;
        break;
      }
    }
  }
  return neighbours;
}

TEST(SyntheticTextTest, ConfusableKeysHaveNeighbours) {
  EXPECT_GE(NumKeysWithANeighbour(1.0), 30);
  EXPECT_LE(NumKeysWithANeighbour(0.0), 16);
}

TEST(SyntheticTextTest, MixtureDrawsByItsWeights) {
  SyntheticTextOptions options = ShortContext();
  options.mixture = {0.5, 0, 0, 0.5, 0};
  std::map<SyntheticTask, int> drawn;
  for (uint64_t index = 0; index < 200; ++index) {
    ++drawn[Generate(SyntheticTask::kMixture, options, 1, index).task];
  }
  EXPECT_EQ(drawn.size(), 2u);
  // Binomial with standard deviation 7; five of them.
  EXPECT_NEAR(drawn[SyntheticTask::kRecall], 100, 35);
}

std::string ErrorOf(SyntheticTask task, const SyntheticTextOptions& options) {
  const auto document = GenerateSyntheticDocument(task, options, 1, 0);
  EXPECT_EQ(document.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(document.status().message());
}

TEST(SyntheticTextTest, ErrorsNameTheOptionAndItsValue) {
  SyntheticTextOptions options = ShortContext();
  options.facts = 100;
  EXPECT_THAT(
      ErrorOf(SyntheticTask::kRecall, options),
      HasSubstr(
          "tokens is 300 but 100 facts take 700; use more tokens or fewer"));
  options = ShortContext();
  options.questions = 13;
  EXPECT_THAT(ErrorOf(SyntheticTask::kRecall, options),
              HasSubstr("questions is 13 but 12 facts of this task give 12"));
  options = ShortContext();
  options.confusable = 1.5;
  EXPECT_THAT(ErrorOf(SyntheticTask::kRecall, options),
              HasSubstr("confusable is 1.5 but must be in [0, 1]"));
}

TEST(SyntheticTextTest, TasksHaveNames) {
  EXPECT_EQ(*ParseSyntheticTask("hop"), SyntheticTask::kHop);
  EXPECT_THAT(std::string(ParseSyntheticTask("jump").status().message()),
              HasSubstr("\"jump\" is unknown; known: recall, copy"));
}

// Pinned, so that contexts stay what published figures were measured on.
TEST(SyntheticTextTest, GoldenDocument) {
  SyntheticTextOptions options;
  options.tokens = 48;
  options.facts = 4;
  options.questions = 1;
  const SyntheticDocument document =
      Generate(SyntheticTask::kRecall, options, 2024, 1);
  EXPECT_EQ(
      document.text,
      " #320 r1 ; #a60 m1 ; #a10 r9 ; Dan was a cook , but he never #a20 i6 ; "
      "Rosa was a miller , but she never found the wheel . ? #a20 i6 ;");
  EXPECT_THAT(document.token_ids,
              ElementsAre(264, 51, 50, 48, 281, 49, 260, 264, 97, 54, 48, 276,
                          49, 260, 264, 97, 49, 48, 281, 57, 260, 298, 482, 475,
                          341, 259, 491, 489, 492, 264, 97, 50, 48, 272, 54,
                          260, 313, 482, 475, 332, 259, 491, 490, 492, 347, 474,
                          399, 258, 261, 264, 97, 50, 48, 272, 54, 260));
}

}  // namespace
}  // namespace kvmix
