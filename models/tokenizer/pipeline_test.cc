// The parts of the pipeline, against textbook versions and written-out cases.
#include "models/tokenizer/pipeline.h"

#include <algorithm>
#include <limits>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvmix/base/status_matchers.h"
#include "models/tokenizer/unicode.h"

namespace kvmix {
namespace {

using ::kvmix::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// ---- Unicode ----

TEST(UnicodeTest, MalformedUtf8HasNoLength) {
  EXPECT_EQ(Utf8CharSize("\u00e9x"), 2);
  EXPECT_EQ(Utf8CharSize("\U0010ffff"), 4);
  for (const char* bad : {"", "\x80", "\xc0\x80", "\xc3", "\xed\xa0\x80",
                          "\xf4\x90\x80\x80", "\xff", "\xe4\xb8"}) {
    EXPECT_EQ(Utf8CharSize(bad), 0) << bad;
  }
  EXPECT_EQ(ValidUtf8Prefix("a\u4e00\xff z"), 4);
}

// Examples of UAX 15 and its conformance data.
TEST(UnicodeTest, NfcComposesAndOrdersMarks) {
  EXPECT_EQ(NormalizeNfc("e\u0301"), "\u00e9");
  EXPECT_EQ(NormalizeNfc("\u212b"), "\u00c5");
  EXPECT_EQ(NormalizeNfc("\u1e9b\u0323"), "\u1e9b\u0323");
  EXPECT_EQ(NormalizeNfc("a\u0301\u0323"), "\u1ea1\u0301");
  EXPECT_EQ(NormalizeNfc("\u1100\u1161\u11a8"), "\uac01");
  EXPECT_EQ(NormalizeNfc("\uac00\u11a7\u11a8"), "\uac00\u11a7\u11a8");
  EXPECT_EQ(NormalizeNfc("\u0958"), "\u0915\u093c");
  EXPECT_EQ(NormalizeNfc("e\xff\u0301"), "e\xff\u0301");
  EXPECT_EQ(NormalizeNfc("\ufb01"), "\ufb01");
}

TEST(UnicodeTest, NfcOfManyMisorderedMarksIsNotQuadratic) {
  std::string marks = "a";
  for (int i = 0; i < 250000; ++i) marks += "\u0301";
  for (int i = 0; i < 250000; ++i) marks += "\u0323";
  const std::string composed = NormalizeNfc(marks);
  EXPECT_EQ(composed.substr(0, 5), "\u1ea1\u0323");
  // a (1 byte) and one mark (2) became one character of 3 bytes.
  EXPECT_EQ(composed.size(), marks.size());
}

// ---- Pre-tokenizer ----

std::vector<std::string> Split(const PreTokenizer& pre_tokenizer,
                               absl::string_view text) {
  std::vector<std::string> words;
  EXPECT_OK(pre_tokenizer.Split(text, true, [&](absl::string_view word) {
    words.emplace_back(word);
    return absl::OkStatus();
  }));
  return words;
}

std::vector<std::string> SplitBy(absl::string_view pattern,
                                 PreTokenizer::Behavior behavior, bool invert,
                                 absl::string_view text) {
  auto regex = Regex::Compile(pattern);
  EXPECT_OK(regex.status());
  PreTokenizer pre_tokenizer;
  pre_tokenizer.AddSplit(*std::move(regex), behavior, invert);
  return Split(pre_tokenizer, text);
}

TEST(PreTokenizerTest, BehaviorsPlaceTheMatch) {
  using B = PreTokenizer::Behavior;
  EXPECT_THAT(SplitBy("-", B::kIsolated, false, "a-b--c"),
              ElementsAre("a", "-", "b", "-", "-", "c"));
  EXPECT_THAT(SplitBy("-", B::kRemoved, false, "a-b--c"),
              ElementsAre("a", "b", "c"));
  EXPECT_THAT(SplitBy("[^-]+", B::kRemoved, true, "a-b--c"),
              ElementsAre("a", "b", "c"));
  EXPECT_THAT(SplitBy("-", B::kMergedWithPrevious, false, "a-b--c-"),
              ElementsAre("a-", "b-", "-", "c-"));
  EXPECT_THAT(SplitBy("-", B::kMergedWithNext, false, "-a-b--c-"),
              ElementsAre("-a", "-b", "-", "-c", "-"));
  EXPECT_THAT(SplitBy("(?=[A-Z])", B::kIsolated, false, "oneTwo"),
              ElementsAre("one", "Two"));
}

TEST(PreTokenizerTest, WhiteSpaceIsTheUnicodeProperty) {
  // U+180E is a space to PCRE2's \s alone.
  EXPECT_THAT(SplitBy("\\s+", PreTokenizer::Behavior::kIsolated, false,
                      "a\u180e\u0085\u3000b"),
              ElementsAre("a\u180e", "\u0085\u3000", "b"));
}

TEST(PreTokenizerTest, MalformedBytesAreWordsOfTheirOwn) {
  EXPECT_THAT(SplitBy(kGpt2Pattern, PreTokenizer::Behavior::kIsolated, false,
                      "ab\xff\xfe cd\xe4"),
              ElementsAre("ab", "\xff\xfe", " cd", "\xe4"));
}

TEST(RegexTest, DialectDifferencesAreRefused) {
  for (const char* pattern :
       {"\\w", "\\b", "\\h", "\\1", "^a", "a$", "a{1,2}+", "[a[b]]", "[a&&b]",
        "(?R)", "(?<n>a)", "(*ACCEPT)", "(?C1)", "\\xff", "[]a]", "\\Qa\\E"}) {
    EXPECT_THAT(
        Regex::Compile(pattern).status(),
        StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("differently")))
        << pattern;
  }
  for (const char* pattern : {"(", "[a", "a\\", "\\p{Nonsense}", "(?<=a+)b",
                              "a{2,1}", "((a{1,9999}){1,9999}){1,9999}"}) {
    EXPECT_FALSE(Regex::Compile(pattern).ok()) << pattern;
  }
  EXPECT_FALSE(Regex::Compile(std::string(100000, 'a')).ok());
  EXPECT_FALSE(Regex::Compile(std::string(10000, '(')).ok());
}

TEST(RegexTest, EscapedTextMatchesItself) {
  const std::string text = "a.b*[c](d){2}\\|^$ \u2581#-";
  EXPECT_THAT(SplitBy(Regex::Escape(text), PreTokenizer::Behavior::kIsolated,
                      false, "x" + text + "y"),
              ElementsAre("x", text, "y"));
}

// ---- BPE ----

// Merges the best pair of the whole word, the leftmost first, again and again.
std::vector<int32_t> TextbookBpe(const RankedBpeSpec& spec,
                                 absl::string_view word) {
  std::vector<std::string> parts;
  for (char c : word) parts.emplace_back(1, c);
  while (true) {
    size_t best_rank = spec.merges.size();
    size_t best = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto it = std::find(spec.merges.begin(), spec.merges.end(),
                                std::pair(parts[i], parts[i + 1]));
      const size_t rank = it - spec.merges.begin();
      if (rank < best_rank) {
        best_rank = rank;
        best = i;
      }
    }
    if (best_rank == spec.merges.size()) break;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + best + 1);
  }
  std::vector<int32_t> ids;
  for (const std::string& part : parts) ids.push_back(spec.vocab.at(part));
  return ids;
}

TEST(RankedBpeTest, MatchesTheTextbookOnRandomVocabularies) {
  std::mt19937 random(7);
  for (int round = 0; round < 30; ++round) {
    RankedBpeSpec spec;
    std::vector<std::string> tokens = {"a", "b", "c"};
    for (size_t i = 0; i < 3; ++i) spec.vocab[tokens[i]] = i;
    while (spec.merges.size() < 25) {
      const std::string left = tokens[random() % tokens.size()];
      const std::string right = tokens[random() % tokens.size()];
      // One merge for a token, as training gives.
      if (spec.vocab.contains(left + right)) continue;
      spec.vocab[left + right] = tokens.size();
      tokens.push_back(left + right);
      spec.merges.emplace_back(left, right);
    }
    ASSERT_OK_AND_ASSIGN(const auto bpe, MakeRankedBpe(spec));
    for (int i = 0; i < 100; ++i) {
      std::string word;
      for (int n = 1 + random() % 40; n > 0; --n) word += "abc"[random() % 3];
      std::vector<int32_t> ids;
      ASSERT_OK(bpe->Encode(word, &ids));
      EXPECT_EQ(ids, TextbookBpe(spec, word)) << word;
    }
  }
}

TEST(ScoredBpeTest, EqualScoresMergeTheLeftmostFirst) {
  ScoredBpeSpec spec;
  spec.pieces = {{"a", 0, 0}, {"aa", -1, 1}};
  ASSERT_OK_AND_ASSIGN(const auto bpe, MakeScoredBpe(spec));
  std::vector<int32_t> ids;
  ASSERT_OK(bpe->Encode("aaa", &ids));
  EXPECT_THAT(ids, ElementsAre(1, 0));
}

TEST(ScoredBpeTest, UserDefinedPiecesStayWhole) {
  ScoredBpeSpec spec;
  spec.pieces = {{"a", 0, 0},
                 {"b", 0, 1},
                 {"ab", 0, 2, /*user_defined=*/true},
                 {"aab", 5, 3},
                 {"bab", 5, 4}};
  ASSERT_OK_AND_ASSIGN(const auto bpe, MakeScoredBpe(spec));
  std::vector<int32_t> ids;
  ASSERT_OK(bpe->Encode("aabab", &ids));
  EXPECT_THAT(ids, ElementsAre(0, 2, 2));
}

// ---- Added tokens ----

std::string Sections(const AddedTokens& tokens, absl::string_view text,
                     bool parse_special = true) {
  std::string out;
  EXPECT_OK(tokens.Split(text, parse_special,
                         [&](absl::string_view section, int32_t id) {
                           out += id == kNoToken ? "[" : "{";
                           out.append(section.data(), section.size());
                           out += id == kNoToken ? "]" : "}";
                           return absl::OkStatus();
                         }));
  return out;
}

AddedToken Make(const std::string& content) {
  AddedToken token;
  token.content = content;
  token.id = 1;
  return token;
}

TEST(AddedTokensTest, TheLongestAtTheLeftmostPlaceWins) {
  AddedTokens tokens;
  for (const char* content : {"ab", "abcd", "bcde"}) tokens.Add(Make(content));
  EXPECT_EQ(Sections(tokens, "xabcde abc"), "[x]{abcd}[e ]{ab}[c]");
}

TEST(AddedTokensTest, StripTakesWhiteSpaceBesideIt) {
  AddedTokens tokens;
  AddedToken both = Make("<m>");
  both.lstrip = both.rstrip = true;
  tokens.Add(both);
  EXPECT_EQ(Sections(tokens, "a \u3000<m>\n\u00a0<m> \xff"),
            "[a]{ \u3000<m>\n\u00a0}{<m> }[\xff]");
}

TEST(AddedTokensTest, SingleWordsStandAlone) {
  AddedTokens tokens;
  AddedToken word = Make("cat");
  word.single_word = true;
  tokens.Add(word);
  EXPECT_EQ(Sections(tokens, "cat concat cat\u0301 cat-cat _cat"),
            "{cat}[ concat cat\u0301 ]{cat}[-]{cat}[ _cat]");
}

TEST(AddedTokensTest, SpecialOnesAreTextUnlessParsed) {
  AddedTokens tokens;
  AddedToken special = Make("<s>");
  special.special = true;
  tokens.Add(special);
  EXPECT_EQ(Sections(tokens, "a<s>b", true), "[a]{<s>}[b]");
  EXPECT_EQ(Sections(tokens, "a<s>b", false), "[a<s>b]");
}

TEST(ByteAlphabetTest, EveryByteHasOneCharacter) {
  EXPECT_EQ(FromByteAlphabet("\u0120the\u010a"), " the\n");
  EXPECT_EQ(FromByteAlphabet("\u00ff\u0100\u0143"),
            std::string("\xff\0\xad", 3));
  EXPECT_EQ(FromByteAlphabet("a b"), std::nullopt);  // a space is U+0120
  EXPECT_EQ(FromByteAlphabet("\u0144"), std::nullopt);
}

TEST(ByteTokenTest, HasTwoHexDigits) {
  EXPECT_EQ(ParseByteToken("<0x0A>"), 10);
  for (const char* other : {"<0x0>", "<0x0G>", "<0x0A", "0x0A>", "<0x0A>>"})
    EXPECT_EQ(ParseByteToken(other), std::nullopt);
}

}  // namespace
}  // namespace kvmix
