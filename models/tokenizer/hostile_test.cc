// Files that lie: each is refused with a status that says what is wrong, and
// none crashes, hangs or allocates what it merely claims.
#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_matchers.h"
#include "models/tokenizer/readers.h"
#include "models/tokenizer/sentencepiece_model.pb.h"
#include "models/tokenizer/tokenizer.h"

namespace kvmix {
namespace {

using ::kvmix::testing::StatusIs;
using ::testing::HasSubstr;
using Json = nlohmann::json;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

Json Small() {
  return Json::parse(R"({
    "added_tokens": [{"id": 5, "content": "<s>", "special": true}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
    "post_processor": null,
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE",
              "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4},
              "merges": ["a b", ["ab", "c"]]}})");
}

absl::Status LoadStatus(const std::string& text) {
  return LoadTokenizerJson(text).status();
}

// Small() with the value at `pointer` replaced.
absl::Status With(const std::string& pointer, const Json& value) {
  Json json = Small();
  json[Json::json_pointer(pointer)] = value;
  return LoadStatus(json.dump());
}

TEST(HostileJsonTest, TheUnchangedFileLoads) {
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, LoadTokenizerJson(Small().dump()));
  EXPECT_THAT(tokenizer->Encode("abcab").value(), ::testing::ElementsAre(4, 3));
}

TEST(HostileJsonTest, EveryTruncationIsRefused) {
  const std::string text = Small().dump();
  for (size_t size = 0; size < text.size(); ++size)
    EXPECT_THAT(LoadStatus(text.substr(0, size)),
                StatusIs(kInvalid, HasSubstr("not JSON")));
}

TEST(HostileJsonTest, EveryFlippedByteIsRefusedOrLoads) {
  const std::string text = Small().dump();
  for (size_t i = 0; i < text.size(); ++i) {
    for (int flip : {1, 2, 16, 32, 128}) {
      std::string changed = text;
      changed[i] ^= flip;
      if (auto tokenizer = LoadTokenizerJson(changed); tokenizer.ok()) {
        (void)(*tokenizer)->Encode("abc <s> ab").status();
      }
    }
  }
}

TEST(HostileJsonTest, WrongTypesNameTheirPath) {
  for (const char* pointer :
       {"/model", "/model/vocab", "/model/merges", "/added_tokens",
        "/pre_tokenizer", "/decoder", "/added_tokens/0/id", "/model/vocab/a",
        "/model/merges/0", "/pre_tokenizer/add_prefix_space", "/model/type",
        "/added_tokens/0/content", "/added_tokens/0/special"}) {
    for (const Json& wrong : {Json(1.5), Json("x"), Json::array({7}),
                              Json::object({{"k", 7}}), Json(-1)}) {
      if (wrong.is_string() && absl::EndsWith(pointer, "content")) continue;
      const absl::Status status = With(pointer, wrong);
      EXPECT_FALSE(status.ok()) << pointer << " = " << wrong.dump();
      std::string path = absl::string_view(pointer).substr(1).data();
      const std::string first = path.substr(0, path.find('/'));
      if (wrong.is_object()) continue;  // may name a member that it lacks
      EXPECT_THAT(status, StatusIs(status.code(), HasSubstr(first)))
          << pointer << " = " << wrong.dump();
    }
  }
}

TEST(HostileJsonTest, IdsMustBeInRange) {
  for (const Json& id :
       {Json(int64_t{1} << 60), Json(std::numeric_limits<uint64_t>::max()),
        Json(1 << 20), Json(-3), Json(1e300)}) {
    EXPECT_THAT(With("/model/vocab/c", id),
                StatusIs(kInvalid, HasSubstr("model.vocab[\"c\"] is")));
    EXPECT_FALSE(With("/added_tokens/0/id", id).ok()) << id.dump();
  }
}

TEST(HostileJsonTest, IdsMayHaveHoles) {
  Json json = Small();
  json["model"]["vocab"]["c"] = 1000;
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, LoadTokenizerJson(json.dump()));
  EXPECT_EQ(tokenizer->vocab_size(), 1001);
  EXPECT_THAT(tokenizer->Decode({999}),
              StatusIs(kInvalid, HasSubstr("ids[0] is 999")));
}

TEST(HostileJsonTest, DuplicatesAreRefused) {
  EXPECT_THAT(With("/model/vocab/c", 1),
              StatusIs(kInvalid, HasSubstr("id 1 is given to two tokens")));
  EXPECT_THAT(With("/added_tokens/0/id", 1),
              StatusIs(kInvalid, HasSubstr("id 1 is given to two tokens")));
  EXPECT_THAT(With("/added_tokens/0/content", "ab"),
              StatusIs(kInvalid, HasSubstr("model.vocab has \"ab\" at 3")));
  EXPECT_THAT(
      With("/model/merges", {"a b", "a b"}),
      StatusIs(kInvalid, HasSubstr("merge 1 (\"a\" \"b\") stands twice")));
  EXPECT_THAT(LoadStatus(R"({"model": {"vocab": {"a": 0, "a": 1}}})"),
              StatusIs(kInvalid, HasSubstr("the key \"a\" twice")));
}

TEST(HostileJsonTest, MergesMustLeadFromTokensToTokens) {
  const std::pair<Json, const char*> wrong[] = {
      {{"a x"}, "right part that is not in the vocabulary"},
      {{"x a"}, "left part that is not in the vocabulary"},
      {{"b a"}, "result that is not in the vocabulary"},
      {Json::array({Json::array({"", "a"})}), "empty part"},
      {Json::array({Json::array({"a", ""})}), "empty part"},
      {{"a"}, "model.merges[0] is \"a\" but must be two tokens"},
      {{"a b c"}, "must be two tokens"},
      {{1}, "must be two tokens"},
      {Json::array({Json::array({"a", 1})}), "must be two tokens"},
      {Json::array({Json::array({"a", "\u4e00"})}), "byte alphabet"}};
  for (const auto& [merges, message] : wrong)
    EXPECT_THAT(With("/model/merges", merges),
                StatusIs(kInvalid, HasSubstr(message)));
}

TEST(HostileJsonTest, DeepNestingIsRefused) {
  for (const char* open : {"[", "{\"a\":"}) {
    std::string text;
    for (int i = 0; i < 1000000; ++i) text += open;
    EXPECT_FALSE(LoadStatus(text).ok());
  }
  std::string closed(100000, '[');
  closed += std::string(100000, ']');
  EXPECT_THAT(LoadStatus(closed), StatusIs(kInvalid, HasSubstr("64 levels")));
}

TEST(HostileJsonTest, MalformedUtf8IsRefused) {
  EXPECT_THAT(LoadStatus("{\"model\": \"\xff\"}"),
              StatusIs(kInvalid, HasSubstr("UTF-8")));
  EXPECT_THAT(LoadStatus("{\"model\": \"\\ud800\"}"),
              StatusIs(kInvalid, HasSubstr("surrogate")));
}

TEST(HostileJsonTest, WhatIsNotImplementedIsNamed) {
  const std::tuple<const char*, Json, const char*> wrong[] = {
      {"/model/type", "Unigram", "model.type is \"Unigram\""},
      {"/model/dropout", 0.1, "model.dropout is 0.1"},
      {"/model/end_of_word_suffix", "</w>", "end_of_word_suffix"},
      {"/normalizer", {{"type", "Lowercase"}}, "normalizer.type is \"Lowerc"},
      {"/pre_tokenizer", {{"type", "Whitespace"}}, "\"Whitespace\""},
      {"/pre_tokenizer",
       {{"type", "Split"},
        {"pattern", {{"Regex", "a"}}},
        {"behavior", "Contiguous"}},
       "pre_tokenizer.behavior is \"Contiguous\""},
      {"/pre_tokenizer",
       {{"type", "Split"},
        {"pattern", {{"Regex", "\\w+"}}},
        {"behavior", "Isolated"}},
       "pre_tokenizer.pattern: pattern uses \\w"},
      {"/post_processor", {{"type", "BertProcessing"}}, "\"BertProcessing\""},
      {"/decoder", {{"type", "WordPiece"}}, "decoder.type is \"WordPiece\""},
      {"/decoder", {{"type", "Metaspace"}}, "ByteLevel, like the pre_token"}};
  for (const auto& [pointer, value, message] : wrong)
    EXPECT_THAT(With(pointer, value),
                StatusIs(kUnimplemented, HasSubstr(message)));
}

TEST(HostileJsonTest, TemplatesMayOnlyNameTokens) {
  const auto make = [](const Json& single, const Json& ids) {
    return Json{{"type", "TemplateProcessing"},
                {"single", single},
                {"special_tokens", {{"<s>", {{"ids", ids}}}}}};
  };
  const Json bos = {{"SpecialToken", {{"id", "<s>"}}}};
  const Json other = {{"SpecialToken", {{"id", "<t>"}}}};
  const Json text = {{"Sequence", {{"id", "A"}}}};
  const Json one = Json::array({5});
  EXPECT_OK(With("/post_processor", make({bos, text}, one)));
  EXPECT_THAT(With("/post_processor", make({bos, text}, Json::array({6}))),
              StatusIs(kInvalid, HasSubstr("ids[0] is 6")));
  EXPECT_THAT(With("/post_processor", make({other, text}, one)),
              StatusIs(kInvalid, HasSubstr("special_tokens has no \"<t>\"")));
  EXPECT_THAT(With("/post_processor", make(Json::array({bos}), one)),
              StatusIs(kInvalid, HasSubstr("with a Sequence")));
  EXPECT_THAT(With("/post_processor", make({text, text}, one)),
              StatusIs(kInvalid, HasSubstr("only Sequence")));
}

TEST(HostileJsonTest, ExponentialPatternsEndInAStatus) {
  Json json = Small();
  json["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"},
         {"pattern", {{"Regex", "(?:a|aa|(?:a+a+)+)+[bc]"}}},
         {"behavior", "Isolated"}},
        {{"type", "ByteLevel"},
         {"add_prefix_space", false},
         {"use_regex", false}}}}};
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, LoadTokenizerJson(json.dump()));
  EXPECT_THAT(
      tokenizer->Encode(std::string(5000, 'a')),
      StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("pattern")));
}

TEST(HostileJsonTest, BytesWithoutATokenAreSaid) {
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, LoadTokenizerJson(Small().dump()));
  EXPECT_THAT(tokenizer->Encode("ab\xffz"),
              StatusIs(kInvalid, HasSubstr("no token for \"\\xff\"")));
}

// ---- SentencePiece ----

sentencepiece::Model SmallModel() {
  sentencepiece::Model model;
  const auto add = [&](const std::string& piece, float score,
                       sentencepiece::Model::Piece::Type type) {
    auto* p = model.add_pieces();
    p->set_piece(piece);
    p->set_score(score);
    p->set_type(type);
  };
  using P = sentencepiece::Model::Piece;
  add("<unk>", 0, P::UNKNOWN);
  add("<s>", 0, P::CONTROL);
  add("</s>", 0, P::CONTROL);
  add("ab", -1, P::UNUSED);
  add("abc", -2, P::NORMAL);
  add("a", -3, P::NORMAL);
  add("b", -4, P::NORMAL);
  add("c", -5, P::NORMAL);
  add("\u2581", -6, P::NORMAL);
  model.mutable_trainer_spec()->set_model_type(sentencepiece::Trainer::BPE);
  return model;
}

absl::Status ModelStatus(const sentencepiece::Model& model) {
  return ReadSentencePieceModel(model.SerializeAsString()).status();
}

TEST(HostileSentencePieceTest, UnusedPiecesLeadToOthersAndAreNeverEmitted) {
  ASSERT_OK_AND_ASSIGN(
      PipelineSpec spec,
      ReadSentencePieceModel(SmallModel().SerializeAsString()));
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, MakePipeline(std::move(spec)));
  EncodeOptions plain;
  plain.add_special_tokens = false;
  EXPECT_THAT(tokenizer->Encode("abcab", plain).value(),
              ::testing::ElementsAre(8, 4, 5, 6));
  // One unknown token for a run of unknown characters.
  EXPECT_THAT(tokenizer->Encode("xya", plain).value(),
              ::testing::ElementsAre(8, 0, 5));
}

TEST(HostileSentencePieceTest, TruncatedAndFlippedModelsNeverCrash) {
  const std::string bytes = SmallModel().SerializeAsString();
  for (size_t size = 0; size < bytes.size(); ++size)
    (void)ReadSentencePieceModel(bytes.substr(0, size)).status();
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string changed = bytes;
      changed[i] ^= 1 << bit;
      auto spec = ReadSentencePieceModel(changed);
      if (!spec.ok()) continue;
      if (auto tokenizer = MakePipeline(*std::move(spec)); tokenizer.ok())
        (void)(*tokenizer)->Encode("abc ab").status();
    }
  }
  EXPECT_THAT(ReadSentencePieceModel("not a protobuf"),
              StatusIs(kInvalid, HasSubstr("not a SentencePiece model")));
}

TEST(HostileSentencePieceTest, WrongModelsSayWhy) {
  auto model = SmallModel();
  model.mutable_trainer_spec()->set_model_type(sentencepiece::Trainer::UNIGRAM);
  EXPECT_THAT(ModelStatus(model),
              StatusIs(kUnimplemented, HasSubstr("model_type is UNIGRAM")));

  model = SmallModel();
  model.mutable_normalizer_spec()->set_name("nmt_nfkc");
  model.mutable_normalizer_spec()->set_precompiled_charsmap("xyz");
  EXPECT_THAT(ModelStatus(model),
              StatusIs(kUnimplemented,
                       HasSubstr("normalizer_spec.name is \"nmt_nfkc\"")));

  model = SmallModel();
  model.mutable_pieces(5)->set_piece("b");
  EXPECT_THAT(ModelStatus(model),
              StatusIs(kInvalid, HasSubstr("token 6 \"b\" stands twice")));

  model = SmallModel();
  model.mutable_pieces(5)->set_score(std::nanf(""));
  EXPECT_THAT(ModelStatus(model),
              StatusIs(kInvalid, HasSubstr("score of token 5")));

  model = SmallModel();
  model.mutable_pieces(5)->set_type(sentencepiece::Model::Piece::BYTE);
  EXPECT_THAT(ModelStatus(model), StatusIs(kInvalid, HasSubstr("<0x0A>")));
  model.mutable_pieces(5)->set_piece("<0x41>");
  EXPECT_THAT(ModelStatus(model),
              StatusIs(kInvalid, HasSubstr("none or all 256")));

  model = SmallModel();
  model.mutable_trainer_spec()->set_bos_id(77);
  ASSERT_OK_AND_ASSIGN(PipelineSpec spec,
                       ReadSentencePieceModel(model.SerializeAsString()));
  EXPECT_THAT(MakePipeline(std::move(spec)),
              StatusIs(kInvalid, HasSubstr("77")));
}

// ---- GGUF ----

GgufTokenizerData SmallGguf() {
  GgufTokenizerData data;
  data.model = "gpt2";
  data.pre = "gpt-2";
  data.tokens = {"a", "b", "ab"};
  data.merges = {"a b"};
  return data;
}

TEST(HostileGgufTest, WrongDataSaysWhy) {
  EXPECT_OK(LoadGgufTokenizer(SmallGguf()));
  const auto expect = [](GgufTokenizerData data, absl::StatusCode code,
                         const char* message) {
    EXPECT_THAT(LoadGgufTokenizer(data), StatusIs(code, HasSubstr(message)));
  };
  auto data = SmallGguf();
  data.model = "t5";
  expect(data, kUnimplemented, "tokenizer.ggml.model is \"t5\"");
  data = SmallGguf();
  data.pre = "tekken";
  expect(data, kUnimplemented, "tokenizer.ggml.pre is \"tekken\"");
  data = SmallGguf();
  data.pre = "";
  expect(data, kUnimplemented, "tokenizer.ggml.pre is \"\"");
  data = SmallGguf();
  data.tokens.clear();
  expect(data, kInvalid, "tokens is empty");
  data = SmallGguf();
  data.tokens.push_back("a");
  expect(data, kInvalid, "tokens[3] is \"a\", as is tokens[0]");
  data = SmallGguf();
  data.token_types = {1};
  expect(data, kInvalid, "token_type has 1 entries but tokens has 3");
  data = SmallGguf();
  data.merges = {"a  b"};
  expect(data, kInvalid, "tokenizer.ggml.merges[0]");
  data = SmallGguf();
  data.merges = {"b a"};
  expect(data, kInvalid, "result that is not in the vocabulary");
  data = SmallGguf();
  data.eos_token_id = int64_t{1} << 60;
  expect(data, kInvalid, "eos_token_id is 1152921504606846976");
  data = SmallGguf();
  data.model = "llama";
  expect(data, kInvalid, "scores has 0 entries");
  data.scores = {-1, -2, -3};
  data.token_types = {1, 1, 9};
  expect(data, kInvalid, "has type 9");
}

}  // namespace
}  // namespace kvmix
