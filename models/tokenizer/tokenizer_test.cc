// Compares each tokenizer in testdata with the ids that Hugging Face's
// `tokenizers` and Google's `sentencepiece` give for it
// (tools/make_tokenizer_goldens.py), and states what holds for all of them.
#include "models/tokenizer/tokenizer.h"

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_matchers.h"
#include "models/tokenizer/sentencepiece_model.pb.h"

namespace kvmix {
namespace {

using ::kvmix::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Ids = std::vector<int32_t>;

const std::string kTestdata = "models/tokenizer/testdata/";

std::string ReadFileOrDie(const std::string& path) {
  auto text = ReadFile(path);
  EXPECT_OK(text.status());
  return text.ok() ? *text : "";
}

nlohmann::json ReadJson(const std::string& path) {
  return nlohmann::json::parse(ReadFileOrDie(path));
}

std::vector<std::string> Cases() {
  return ReadJson(kTestdata + "cases.json").get<std::vector<std::string>>();
}

std::vector<Ids> GoldenIds(const std::string& name, const std::string& file) {
  return ReadJson(kTestdata + name + "/" + file).get<std::vector<Ids>>();
}

EncodeOptions Plain() {
  EncodeOptions options;
  options.add_special_tokens = false;
  return options;
}

EncodeOptions Parsing() {
  EncodeOptions options;
  options.parse_special_tokens = true;
  return options;
}

std::unique_ptr<Tokenizer> Load(const std::string& name) {
  auto tokenizer = LoadTokenizer(kTestdata + name);
  EXPECT_OK(tokenizer.status());
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

void ExpectGoldenIds(const Tokenizer& tokenizer, const std::vector<Ids>& golden,
                     const EncodeOptions& options) {
  const auto cases = Cases();
  ASSERT_EQ(cases.size(), golden.size());
  for (size_t i = 0; i < cases.size(); ++i) {
    const auto ids = tokenizer.Encode(cases[i], options);
    ASSERT_OK(ids.status()) << cases[i];
    EXPECT_EQ(*ids, golden[i]) << "case " << i << ": " << cases[i];
  }
}

// A folder under testdata that holds a tokenizer.
class GoldenTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    tokenizer_ = Load(GetParam());
    ASSERT_NE(tokenizer_, nullptr);
  }
  std::string name() const { return GetParam(); }
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_P(GoldenTest, GivesTheReferenceIds) {
  ExpectGoldenIds(*tokenizer_, GoldenIds(name(), "plain_ids.json"), Plain());
  // SentencePiece has no mode that parses special tokens.
  if (std::filesystem::exists(kTestdata + name() + "/ids.json"))
    ExpectGoldenIds(*tokenizer_, GoldenIds(name(), "ids.json"), Parsing());
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTest,
                         ::testing::Values("gpt2", "gpt2_prefix_space",
                                           "smollm", "llama3", "qwen2",
                                           "split_behaviors", "llama2_model",
                                           "unknown_model", "llama2_json",
                                           "metaspace_json"),
                         [](const auto& info) { return info.param; });

// A forgotten folder would be a golden that nobody compares.
TEST(GoldenFilesTest, EveryFolderIsAnInstanceOfGoldenTest) {
  int num_folders = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kTestdata))
    num_folders += entry.is_directory();
  EXPECT_EQ(num_folders, 10);
}

// Tokenizers that keep every byte of a text.
class RoundTripTest : public GoldenTest {};

TEST_P(RoundTripTest, DecodeUndoesEncodeForTheCases) {
  for (const std::string& text : Cases()) {
    if (text.find("\u2581") != text.npos) continue;  // it means a space
    // In llama2_json the added token is "\u2581<tool>", and swallows a space.
    if (text.find("<tool>") != text.npos) continue;
    ASSERT_OK_AND_ASSIGN(const Ids ids, tokenizer_->Encode(text));
    EXPECT_EQ(tokenizer_->Decode(ids).value(), text);
  }
}

TEST_P(RoundTripTest, DecodeUndoesEncodeForAnyBytes) {
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) {
    std::string text;
    for (int n = random() % 60; n > 0; --n) {
      // Runs of letters and spaces, and bytes that start and break characters.
      const uint32_t kind = random() % 4;
      text.push_back(kind == 0   ? ' '
                     : kind == 1 ? 'a' + random() % 26
                                 : static_cast<char>(random() % 256));
    }
    if (text.find("\u2581") != text.npos) continue;
    ASSERT_OK_AND_ASSIGN(const Ids ids, tokenizer_->Encode(text));
    EXPECT_EQ(tokenizer_->Decode(ids).value(), text);
  }
}

TEST_P(RoundTripTest, TokenTextsInARowAreTheText) {
  const std::string text = "The cache\u00a0holds 42 keys \U0001F600.";
  ASSERT_OK_AND_ASSIGN(const Ids ids, tokenizer_->Encode(text, Plain()));
  std::string joined;
  for (int32_t id : ids) joined += tokenizer_->TokenText(id);
  // SentencePiece puts a space in front.
  EXPECT_TRUE(joined == text || joined == " " + text) << joined;
}

INSTANTIATE_TEST_SUITE_P(All, RoundTripTest,
                         ::testing::Values("gpt2", "smollm", "llama3",
                                           "llama2_model", "llama2_json"),
                         [](const auto& info) { return info.param; });

TEST(TokenizerTest, SpecialTokensInTextAreTextUnlessAsked) {
  const auto tokenizer = Load("llama3");
  const int32_t eot = tokenizer->vocab_size() - 1;
  ASSERT_EQ(tokenizer->TokenText(eot), "<|eot|>");
  ASSERT_OK_AND_ASSIGN(const Ids plain, tokenizer->Encode("a<|eot|>"));
  EXPECT_THAT(plain, ::testing::Not(::testing::Contains(eot)));
  ASSERT_OK_AND_ASSIGN(const Ids parsed,
                       tokenizer->Encode("a<|eot|>", Parsing()));
  EXPECT_EQ(parsed.back(), eot);
}

TEST(TokenizerTest, DecodeLeavesOutSpecialTokensUnlessAsked) {
  const auto tokenizer = Load("llama2_model");
  ASSERT_OK_AND_ASSIGN(const Ids ids, tokenizer->Encode("The keys"));
  EXPECT_EQ(ids[0], tokenizer->bos_id());
  EXPECT_EQ(tokenizer->Decode(ids).value(), "The keys");
  DecodeOptions keep;
  keep.keep_special_tokens = true;
  EXPECT_EQ(tokenizer->Decode(ids, keep).value(), "<s> The keys");
}

TEST(TokenizerTest, NfcTokenizersDecodeToTheComposedText) {
  const auto tokenizer = Load("qwen2");
  ASSERT_OK_AND_ASSIGN(const Ids ids, tokenizer->Encode("e\u0301"));
  EXPECT_EQ(tokenizer->Decode(ids).value(), "\u00e9");
}

TEST(TokenizerTest, IdsWithoutATokenAreInvalid) {
  const auto tokenizer = Load("gpt2");
  const int32_t size = tokenizer->vocab_size();
  EXPECT_THAT(tokenizer->Decode({0, size}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr(absl::StrCat("ids[1] is ", size))));
  EXPECT_THAT(tokenizer->Decode({-1}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("-1")));
  EXPECT_EQ(tokenizer->TokenText(size), "");
  EXPECT_EQ(tokenizer->TokenText(-1), "");
}

// Quadratic merging would need hours.
TEST(TokenizerTest, AMegabyteOfOneLetterTakesSeconds) {
  const std::pair<const char*, const char*> kinds[] = {
      {"gpt2", "a"},   {"gpt2", "\u0301"},       {"gpt2", "\xff"},
      {"llama3", " "}, {"llama3", "\n"},         {"llama2_model", "a"},
      {"smollm", "1"}, {"llama2_model", "\xff"}, {"llama2_json", "a"}};
  for (const auto& [name, unit] : kinds) {
    const auto tokenizer = Load(name);
    std::string text;
    while (text.size() < (1 << 20)) text += unit;
    const auto start = std::chrono::steady_clock::now();
    ASSERT_OK_AND_ASSIGN(const Ids ids, tokenizer->Encode(text));
    EXPECT_LT(std::chrono::steady_clock::now() - start,
              std::chrono::seconds(20))
        << name << " " << unit;
    // Not EXPECT_EQ, whose comparison of a megabyte would take hours.
    EXPECT_TRUE(tokenizer->Decode(ids).value() == text) << name << " " << unit;
  }
}

TEST(TokenizerTest, ThreadsShareATokenizer) {
  const auto tokenizer = Load("smollm");
  ASSERT_OK_AND_ASSIGN(const Ids alone, tokenizer->Encode(Cases()[11]));
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i)
        EXPECT_EQ(tokenizer->Encode(Cases()[11]).value(), alone);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// ---- A folder's other files ----

class FolderTest : public ::testing::Test {
 protected:
  FolderTest() : folder_(::testing::TempDir() + "/tokenizer_folder") {
    std::filesystem::remove_all(folder_);
    Write("tokenizer.json", ReadFileOrDie(kTestdata + "smollm/tokenizer.json"));
  }
  void Write(const std::string& name, const std::string& text) {
    ASSERT_OK(WriteFileAtomically(folder_ + "/" + name, text));
  }
  std::string folder_;
};

TEST_F(FolderTest, TokenizerConfigNamesBosAndEos) {
  Write("tokenizer_config.json", R"({
      "bos_token": {"content": "<s>", "lstrip": false},
      "eos_token": "<|eot|>", "add_bos_token": true, "add_eos_token": true,
      "chat_template": "{{ messages }}"})");
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, LoadTokenizer(folder_));
  ASSERT_OK_AND_ASSIGN(const Ids ids, tokenizer->Encode(""));
  const int32_t bos = *tokenizer->bos_id();
  EXPECT_EQ(tokenizer->TokenText(bos), "<s>");
  EXPECT_THAT(tokenizer->eos_ids(), ElementsAre(ids.back()));
  EXPECT_EQ(tokenizer->TokenText(ids.back()), "<|eot|>");
  EXPECT_EQ(ids.front(), bos);
  EXPECT_EQ(ids.size(), 2);
  EXPECT_EQ(tokenizer->chat_template(), "{{ messages }}");
}

TEST_F(FolderTest, GenerationConfigAddsEosIds) {
  Write("tokenizer_config.json", R"({"eos_token": "<|eot|>"})");
  Write("generation_config.json", R"({"eos_token_id": [5, 7]})");
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, LoadTokenizer(folder_));
  EXPECT_THAT(tokenizer->eos_ids(),
              ElementsAre(tokenizer->vocab_size() - 2, 5, 7));
}

TEST_F(FolderTest, AddBosTokenFalseWinsOverThePostProcessor) {
  Write("tokenizer.json", ReadFileOrDie(kTestdata + "llama3/tokenizer.json"));
  Write("tokenizer_config.json", R"({"add_bos_token": false})");
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, LoadTokenizer(folder_));
  EXPECT_THAT(tokenizer->Encode("").value(), ElementsAre());
}

TEST_F(FolderTest, WrongConfigsSayTheFileAndTheField) {
  Write("tokenizer_config.json", R"({"eos_token": "<nowhere>"})");
  EXPECT_THAT(LoadTokenizer(folder_),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("tokenizer_config.json: eos_token is "
                                 "\"<nowhere>\" but must be a token")));
  Write("tokenizer_config.json", R"({"add_bos_token": "yes",
                                     "bos_token": "<s>"})");
  EXPECT_THAT(LoadTokenizer(folder_),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("add_bos_token is \"yes\"")));
  Write("tokenizer_config.json", "{}");
  Write("generation_config.json", R"({"eos_token_id": 1152921504606846976})");
  EXPECT_THAT(LoadTokenizer(folder_),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("eos_token_id is 1152921504606846976")));
}

TEST_F(FolderTest, AnEmptyFolderSaysWhatItLacks) {
  std::filesystem::remove(folder_ + "/tokenizer.json");
  EXPECT_THAT(LoadTokenizer(folder_),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("no tokenizer.json and no tokenizer.model")));
}

// ---- GGUF ----

// What a GGUF file would hold of a tokenizer.json: the views point into it.
class GgufFromJson {
 public:
  explicit GgufFromJson(const std::string& name)
      : json_(ReadJson(kTestdata + name + "/tokenizer.json")) {
    std::map<int, std::string> tokens;
    for (const auto& [text, id] : json_["model"]["vocab"].items())
      tokens[id.get<int>()] = text;
    for (const auto& token : json_["added_tokens"])
      tokens[token["id"].get<int>()] = token["content"];
    for (const auto& [id, text] : tokens) texts_.push_back(text);
    data.model = "gpt2";
    data.token_types.assign(texts_.size(), 1);
    for (const auto& token : json_["added_tokens"])
      data.token_types[token["id"].get<int>()] = 3;
    for (const auto& merge : json_["model"]["merges"])
      merges_.push_back(absl::StrCat(merge[0].get<std::string>(), " ",
                                     merge[1].get<std::string>()));
    data.tokens.assign(texts_.begin(), texts_.end());
    data.merges.assign(merges_.begin(), merges_.end());
  }

  GgufTokenizerData data;

 private:
  nlohmann::json json_;
  std::vector<std::string> texts_;
  std::vector<std::string> merges_;
};

TEST(GgufTokenizerTest, PreTokenizersGiveTheReferenceIds) {
  const std::pair<const char*, const char*> kinds[] = {{"gpt2", "gpt-2"},
                                                       {"smollm", "smollm"},
                                                       {"llama3", "llama-bpe"},
                                                       {"qwen2", "qwen2"}};
  for (const auto& [name, pre] : kinds) {
    SCOPED_TRACE(name);
    GgufFromJson gguf(name);
    gguf.data.pre = pre;
    if (absl::string_view(name) == "llama3")
      gguf.data.bos_token_id = gguf.data.tokens.size() - 2;
    ASSERT_OK_AND_ASSIGN(const auto tokenizer, LoadGgufTokenizer(gguf.data));
    ExpectGoldenIds(*tokenizer, GoldenIds(name, "plain_ids.json"), Plain());
    ExpectGoldenIds(*tokenizer, GoldenIds(name, "ids.json"), Parsing());
  }
}

TEST(GgufTokenizerTest, SentencePieceScoresGiveTheReferenceIds) {
  for (const std::string name : {"llama2_model", "unknown_model"}) {
    SCOPED_TRACE(name);
    sentencepiece::Model model;
    ASSERT_TRUE(model.ParseFromString(
        ReadFileOrDie(kTestdata + name + "/tokenizer.model")));
    GgufTokenizerData data;
    data.model = "llama";
    for (const auto& piece : model.pieces()) {
      data.tokens.push_back(piece.piece());
      data.scores.push_back(piece.score());
      data.token_types.push_back(piece.type());
    }
    data.bos_token_id = 1;
    data.eos_token_id = 2;
    data.remove_extra_whitespaces = name == "unknown_model";
    ASSERT_OK_AND_ASSIGN(const auto tokenizer, LoadGgufTokenizer(data));
    ExpectGoldenIds(*tokenizer, GoldenIds(name, "plain_ids.json"), Plain());
    EXPECT_THAT(tokenizer->Encode("").value(), ElementsAre(1));
    EXPECT_THAT(tokenizer->eos_ids(), ElementsAre(2));
  }
}

}  // namespace
}  // namespace kvmix
