#include "experiments/tasks/text_scores.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvmix {
namespace {

TEST(TextScoresTest, AnswersAreNormalized) {
  EXPECT_EQ(NormalizedAnswer("The  quick, brown-ish Fox!"),
            "quick brownish fox");
}

// Worked by hand: one common word of two and three.
TEST(TextScoresTest, F1CountsWordsAsOftenAsTheyStand) {
  EXPECT_DOUBLE_EQ(WordF1("blue blue", "blue sky above"), 2.0 / 5);
  EXPECT_DOUBLE_EQ(WordF1("the answer", "Answer."), 1);
  EXPECT_EQ(WordF1("", "x"), 0);
}

// The longest common subsequence of "the cat sat" and "the cat was sat on" is
// "the cat sat": 2 * 3 / (3 + 5).
TEST(TextScoresTest, RougeLFollowsTheOrder) {
  EXPECT_DOUBLE_EQ(RougeL("The cat sat", "the cat was sat on"), 6.0 / 8);
  EXPECT_DOUBLE_EQ(RougeL("sat cat the", "the cat sat"), 2.0 / 6);
}

TEST(TextScoresTest, NamingSeveralClassesIsWorthLess) {
  const std::vector<std::string> classes = {"sport", "water sport", "music"};
  EXPECT_EQ(Classification("it is music", "music", classes), 1);
  EXPECT_EQ(Classification("music or sport", "music", classes), 0.5);
  EXPECT_EQ(Classification("water sport", "water sport", classes), 1);
  EXPECT_EQ(Classification("none", "music", classes), 0);
}

TEST(TextScoresTest, RetrievalCountsTheNumbersNamed) {
  EXPECT_EQ(Retrieval("Paragraph 12", "Paragraph 12"), 1);
  EXPECT_EQ(Retrieval("3 or 12", "Paragraph 12"), 0.5);
  EXPECT_EQ(Retrieval("none", "Paragraph 12"), 0);
}

TEST(TextScoresTest, EditSimilarityLooksAtTheFirstLineOfCode) {
  EXPECT_EQ(EditSimilarity("# note\n\nx = 1\ny = 2", "x = 1"), 1);
  EXPECT_DOUBLE_EQ(EditSimilarity("kitten", "sitting"), 1 - 3.0 / 7);
}

TEST(TextScoresTest, TheFinalNumber) {
  EXPECT_EQ(FinalNumber("so 3 + 4 = 7.\n#### 1,234.\nbye 9"), "1234");
  EXPECT_EQ(FinalNumber("it costs $-3.50."), "-3.50");
  EXPECT_EQ(FinalNumber("no number"), "");
}

}  // namespace
}  // namespace kvmix
