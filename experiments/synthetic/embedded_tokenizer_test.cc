// The generator counts in pieces; the embedded model's tokenizer must see
// exactly these.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "experiments/synthetic/synthetic_text.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvmix/base/status_matchers.h"
#include "models/tokenizer/tokenizer.h"

namespace kvmix {
namespace {

using ::testing::ElementsAreArray;

class EmbeddedTokenizerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(tokenizer_, LoadTokenizer("models/embedded"));
  }

  std::vector<int32_t> Encode(const std::string& text, bool special) {
    EncodeOptions options;
    options.add_special_tokens = special;
    const auto ids = tokenizer_->Encode(text, options);
    EXPECT_TRUE(ids.ok()) << ids.status();
    return *ids;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(EmbeddedTokenizerTest, DocumentsTokenizeToTheGeneratorsIds) {
  for (SyntheticTask task : {SyntheticTask::kRecall, SyntheticTask::kCopy,
                             SyntheticTask::kHop, SyntheticTask::kCount,
                             SyntheticTask::kStory, SyntheticTask::kMixture}) {
    for (Layout layout : {Layout::kQuestionsLast, Layout::kTraining}) {
      SyntheticTextOptions options;
      options.layout = layout;
      options.tokens = 500;
      options.facts = 16;
      options.questions = 2;
      for (uint64_t index = 0; index < 50; ++index) {
        const auto document =
            GenerateSyntheticDocument(task, options, 1, index);
        ASSERT_TRUE(document.ok()) << document.status();
        EXPECT_THAT(Encode(document->text, /*special=*/false),
                    ElementsAreArray(document->token_ids))
            << document->text;
      }
    }
  }
}

TEST_F(EmbeddedTokenizerTest, BeginOfSequenceComesFirst) {
  EXPECT_EQ(Encode(" Tom", /*special=*/true).front(), kBeginOfSequence);
  EXPECT_EQ(tokenizer_->bos_id(), kBeginOfSequence);
  EXPECT_EQ(tokenizer_->vocab_size(), kSyntheticVocabularySize);
}

TEST_F(EmbeddedTokenizerTest, AnyTextComesBack) {
  for (const std::string text :
       {"Gr\u00fc\u00dfe, \u4e16\u754c\n\n  tabs\t", "don't they'll a1b2",
        "Tom the baker", " </s> <s>"}) {
    const auto back = tokenizer_->Decode(Encode(text, /*special=*/false));
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(*back, text);
  }
}

}  // namespace
}  // namespace kvmix
