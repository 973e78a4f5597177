// Opening whole models. models/testdata/ holds one random Llama twice: as
// transformers saves it and as the gguf package writes it, with query and key
// rows permuted (tools/make_gguf_goldens.py).
#include "models/model_files.h"

#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_matchers.h"
#include "models/gguf_test_writer.h"
#include "models/safetensors.h"

namespace kvmix {
namespace {

using ::kvmix::testing::ExactCopy;
using ::kvmix::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kFolder[] = "models/testdata/tiny_llama";
constexpr char kGguf[] = "models/testdata/tiny_llama.gguf";

// A copy of the folder that a test may spoil.
std::string CopyOfFolder(absl::string_view name) {
  const std::string copy = absl::StrCat(::testing::TempDir(), "/", name);
  std::filesystem::remove_all(copy);
  std::filesystem::create_directories(copy);
  for (const char* file :
       {"config.json", "generation_config.json", "model.safetensors"})
    EXPECT_OK(WriteFileAtomically(absl::StrCat(copy, "/", file),
                                  *ReadFile(absl::StrCat(kFolder, "/", file))));
  return copy;
}

TEST(OpenModelTest, FolderAndGgufOfOneModelAgree) {
  ASSERT_OK_AND_ASSIGN(const ModelFiles folder, OpenModel(kFolder));
  ASSERT_OK_AND_ASSIGN(const ModelFiles gguf, OpenModel(kGguf));
  EXPECT_EQ(folder.config, gguf.config);
  EXPECT_EQ(folder.config.rope_scaling.type, RopeScalingType::kLinear);
  EXPECT_EQ(folder.config.rope_theta, 500);
  for (const ExpectedTensor& tensor : ExpectedTensors(folder.config)) {
    const auto count = static_cast<size_t>(*CountElements(tensor.shape));
    std::vector<float> a(count), b(count);
    ASSERT_OK(folder.weights->ReadFloat(tensor.name, tensor.shape, a.data()));
    ASSERT_OK(gguf.weights->ReadFloat(tensor.name, tensor.shape, b.data()));
    EXPECT_EQ(a, b) << tensor.name;
  }
}

TEST(OpenModelTest, TellsWhereTheTokenizerIs) {
  ASSERT_OK_AND_ASSIGN(const ModelFiles folder, OpenModel(kFolder));
  EXPECT_EQ(folder.tokenizer_folder, kFolder);
  EXPECT_EQ(folder.gguf_metadata, nullptr);
  ASSERT_OK_AND_ASSIGN(const ModelFiles gguf, OpenModel(kGguf));
  EXPECT_EQ(gguf.tokenizer_folder, "");
  EXPECT_EQ(*gguf.gguf_metadata->Get<int64_t>("tokenizer.ggml.eos_token_id"),
            2);
}

TEST(OpenModelTest, WrongPathsSayWhatToGive) {
  EXPECT_THAT(OpenModel("no/such/model"),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("\"no/such/model\" does not exist; give a "
                                 "folder with config.json")));
  EXPECT_THAT(OpenModel(absl::StrCat(kFolder, "/model.safetensors")),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("is a weight file; give its folder")));
  EXPECT_THAT(OpenModel(absl::StrCat(kFolder, "/config.json")),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("a GGUF file begins with \"GGUF\"")));
  EXPECT_THAT(OpenModel("models/testdata"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("config.json")));
}

TEST(OpenModelTest, ConfigurationMustFitTheWeights) {
  const std::string folder = CopyOfFolder("misfit");
  const std::string path = absl::StrCat(folder, "/config.json");
  const std::string right = *ReadFile(path);
  const auto with = [&](absl::string_view from, absl::string_view to) {
    const std::string changed = absl::StrReplaceAll(right, {{from, to}});
    EXPECT_NE(changed, right);
    EXPECT_OK(WriteFileAtomically(path, changed));
    return OpenModel(folder).status();
  };
  EXPECT_THAT(with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
              StatusIs(absl::StatusCode::kNotFound,
                       AllOf(HasSubstr(folder), HasSubstr("model.layers.2."))));
  EXPECT_THAT(with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1"),
              StatusIs(absl::StatusCode::kUnimplemented,
                       AllOf(HasSubstr("\"model.layers.1."),
                             HasSubstr("no part of a llama model of 1"))));
  EXPECT_THAT(with("\"vocab_size\": 20", "\"vocab_size\": 21"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("has shape [20, 16] but the configuration "
                                 "asks for [21, 16]")));
  EXPECT_THAT(with("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("k_proj.weight\" has shape [8, 16]")));
  EXPECT_THAT(with("\"model_type\": \"llama\"", "\"model_type\": \"qwen2\""),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("q_proj.bias")));
  // A tied model may carry the copy of its embedding.
  EXPECT_OK(
      with("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true"));
}

TEST(OpenModelTest, TokenListLongerThanTheEmbeddingIsRefused) {
  testing::GgufTestWriter writer;
  writer.String("general.architecture", "qwen2")
      .Int("qwen2.block_count", 1)
      .Int("qwen2.context_length", 8)
      .Int("qwen2.embedding_length", 2)
      .Int("qwen2.feed_forward_length", 2)
      .Int("qwen2.attention.head_count", 1)
      .Float("qwen2.attention.layer_norm_rms_epsilon", 1e-5f)
      .Strings("tokenizer.ggml.tokens", {"a", "b", "c"})
      .FloatTensor("token_embd.weight", {2, 2}, {0, 0, 0, 0});
  const std::string path = absl::StrCat(::testing::TempDir(), "/long.gguf");
  ASSERT_OK(WriteFileAtomically(path, writer.Build()));
  EXPECT_THAT(OpenModel(path),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("has 3 tokens but the embedding has 2 rows")));
}

// ---- Damaged files: an error or a model, never anything else ----

// Reads whatever can be read.
void Exercise(const WeightSource& weights) {
  for (const TensorInfo& info : weights.tensors()) {
    std::vector<float> out(static_cast<size_t>(*CountElements(info.shape)));
    weights.ReadFloat(info.name, info.shape, out.data()).IgnoreError();
  }
}

bool OpensAsGguf(absl::string_view bytes) {
  const ExactCopy copy(bytes);
  const auto file = GgufFile::FromBytes(copy.view, copy.owner, "m.gguf");
  if (!file.ok()) return false;
  Exercise(**file);
  for (const absl::string_view key : (*file)->metadata()->Keys()) {
    (*file)->metadata()->Get<std::vector<absl::string_view>>(key).IgnoreError();
    (*file)->metadata()->Get<std::vector<int64_t>>(key).IgnoreError();
  }
  const auto config = ParseGgufConfig(**file);
  return config.ok() && CheckWeights(*config, **file).ok();
}

bool OpensAsSafetensors(absl::string_view bytes) {
  const ExactCopy copy(bytes);
  const auto file = SafetensorsFiles::FromBytes(copy.view, copy.owner, "m");
  if (!file.ok()) return false;
  Exercise(**file);
  return true;
}

// A header small enough to cut at every byte; every_type.gguf has all types.
TEST(DamagedFileTest, TruncatedGgufIsRefusedAtEveryByte) {
  const std::string whole = *ReadFile(kGguf);
  ASSERT_TRUE(OpensAsGguf(whole));
  // The last tensor may be followed by padding.
  for (size_t size = 0; size < whole.size() - 31; ++size)
    ASSERT_FALSE(OpensAsGguf(absl::string_view(whole).substr(0, size))) << size;
}

TEST(DamagedFileTest, TruncatedSafetensorsIsRefusedAtEveryByte) {
  const std::string whole =
      *ReadFile(absl::StrCat(kFolder, "/model.safetensors"));
  ASSERT_TRUE(OpensAsSafetensors(whole));
  for (size_t size = 0; size < whole.size(); ++size)
    ASSERT_FALSE(OpensAsSafetensors(absl::string_view(whole).substr(0, size)))
        << size;
}

// Spoils one to four bytes of the first `header_bytes`, thousands of times.
template <typename Opens>
void FlipBytes(const std::string& whole, size_t header_bytes, Opens opens) {
  std::mt19937 random(17);
  int opened = 0;
  constexpr int kTrials = 5000;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::string spoiled = whole;
    for (unsigned i = 0; i <= random() % 4; ++i) {
      const unsigned value = random() % 4;  // 0, 255 and random bytes
      spoiled[random() % header_bytes] = static_cast<char>(
          value == 0 ? 0 : (value == 1 ? 255 : random() % 256));
    }
    opened += opens(spoiled);
  }
  EXPECT_LT(opened, kTrials);
}

TEST(DamagedFileTest, SpoiledGgufGivesAnErrorOrAModel) {
  FlipBytes(*ReadFile(kGguf), 1800, OpensAsGguf);
  FlipBytes(*ReadFile("models/testdata/every_type.gguf"), 900, OpensAsGguf);
}

TEST(DamagedFileTest, SpoiledSafetensorsGivesAnErrorOrTensors) {
  FlipBytes(*ReadFile(absl::StrCat(kFolder, "/model.safetensors")), 1500,
            OpensAsSafetensors);
}

TEST(DamagedFileTest, SpoiledConfigGivesAnErrorOrAConfiguration) {
  const std::string whole = *ReadFile(absl::StrCat(kFolder, "/config.json"));
  FlipBytes(whole, whole.size(), [](const std::string& text) {
    const auto config = ParseHuggingFaceConfig(text, "");
    if (!config.ok()) return false;
    EXPECT_OK(Validate(*config));
    return true;
  });
}

}  // namespace
}  // namespace kvmix
