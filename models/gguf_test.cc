#include "models/gguf.h"

#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kvmix/base/status_matchers.h"
#include "models/gguf_test_writer.h"

namespace kvmix {
namespace {

using ::kvmix::testing::Bytes;
using ::kvmix::testing::ExactCopy;
using ::kvmix::testing::FloatBytes;
using ::kvmix::testing::GgufTestWriter;
using ::kvmix::testing::StatusIs;
using ::kvmix::testing::StringBytes;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& bytes) {
  const ExactCopy copy(bytes);
  return GgufFile::FromBytes(copy.view, copy.owner, "m.gguf");
}

std::vector<float> Sequence(int n) {
  std::vector<float> values(n);
  for (int i = 0; i < n; ++i) values[i] = static_cast<float>(i);
  return values;
}

TEST(GgufMetadataTest, ReadsEveryTypeThatAnotherProgramWrote) {
  ASSERT_OK_AND_ASSIGN(const auto file,
                       GgufFile::Open("models/testdata/every_type.gguf"));
  const GgufMetadata& metadata = *file->metadata();
  EXPECT_EQ(*metadata.Get<int64_t>("u8"), 200);
  EXPECT_EQ(*metadata.Get<int64_t>("i8"), -100);
  EXPECT_EQ(*metadata.Get<int64_t>("u16"), 60000);
  EXPECT_EQ(*metadata.Get<int64_t>("i16"), -30000);
  EXPECT_EQ(*metadata.Get<int64_t>("u32"), 4000000000);
  EXPECT_EQ(*metadata.Get<int64_t>("i32"), -2000000000);
  EXPECT_EQ(*metadata.Get<int64_t>("u64"), int64_t{1} << 40);
  EXPECT_EQ(*metadata.Get<int64_t>("i64"), -(int64_t{1} << 40));
  EXPECT_EQ(*metadata.Get<double>("f32"), 0.1f);
  EXPECT_EQ(*metadata.Get<double>("f64"), 0.1);
  EXPECT_EQ(*metadata.Get<bool>("bool"), true);
  EXPECT_EQ(*metadata.Get<absl::string_view>("string"), "Gr\u00fc\u00dfe");
  EXPECT_THAT(*metadata.Get<std::vector<int64_t>>("ints"),
              ElementsAre(1, -2, 3));
  EXPECT_THAT(*metadata.Get<std::vector<double>>("floats"),
              ElementsAre(0.5, -1.5));
  EXPECT_THAT(*metadata.Get<std::vector<absl::string_view>>("strings"),
              ElementsAre("", "a", "\u0120the"));
}

TEST(GgufMetadataTest, MissingKeyAndWrongTypeAreNamed) {
  ASSERT_OK_AND_ASSIGN(const auto file,
                       Open(GgufTestWriter()
                                .String("name", "x")
                                .Strings("list", {"a"})
                                .Raw("big", 10, Bytes(uint64_t{1} << 63))
                                .Build()));
  const GgufMetadata& metadata = *file->metadata();
  EXPECT_THAT(metadata.Get<int64_t>("nope"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("\"nope\"")));
  EXPECT_EQ(*metadata.GetOr<int64_t>("nope", 7), 7);
  EXPECT_THAT(metadata.GetOr<int64_t>("name", 7),
              StatusIs(kInvalid,
                       HasSubstr("\"name\" is string but must be an integer")));
  EXPECT_THAT(metadata.Get<absl::string_view>("list"),
              StatusIs(kInvalid, HasSubstr("is array of string")));
  EXPECT_THAT(metadata.Get<std::vector<int64_t>>("list"),
              StatusIs(kInvalid, HasSubstr("is array of string")));
  EXPECT_THAT(metadata.Get<int64_t>("big"),
              StatusIs(kInvalid, HasSubstr("below 2^63")));
  EXPECT_THAT(metadata.Keys(), ElementsAre("big", "list", "name"));
}

TEST(GgufMetadataTest, OutlivesTheFile) {
  std::shared_ptr<const GgufMetadata> metadata;
  {
    ASSERT_OK_AND_ASSIGN(const auto file,
                         Open(GgufTestWriter().String("k", "value").Build()));
    metadata = file->metadata();
  }
  EXPECT_EQ(*metadata->Get<absl::string_view>("k"), "value");
}

TEST(GgufMetadataTest, NestedArraysAreSteppedOver) {
  const std::string inner =
      Bytes<uint32_t>(8) + Bytes<uint64_t>(1) + StringBytes("x");
  ASSERT_OK_AND_ASSIGN(
      const auto file,
      Open(GgufTestWriter()
               .Raw("nested", 9,
                    Bytes<uint32_t>(9) + Bytes<uint64_t>(2) + inner + inner)
               .Int("after", 5)
               .Build()));
  EXPECT_EQ(*file->metadata()->Get<int64_t>("after"), 5);
  EXPECT_FALSE(file->metadata()->Get<std::vector<int64_t>>("nested").ok());
}

TEST(GgufFileTest, NamesBecomeHuggingFaceNames) {
  GgufTestWriter writer;
  writer.String("general.architecture", "qwen3");
  for (const char* name :
       {"token_embd.weight", "output_norm.weight", "output.weight",
        "blk.11.attn_norm.weight", "blk.11.attn_q.weight", "blk.11.attn_k.bias",
        "blk.11.attn_v.weight", "blk.11.attn_output.weight",
        "blk.11.attn_q_norm.weight", "blk.11.attn_k_norm.weight",
        "blk.11.ffn_norm.weight", "blk.11.ffn_gate.weight",
        "blk.11.ffn_up.weight", "blk.11.ffn_down.weight",
        "blk.11.ffn_gate_inp.weight", "blk.weight", "blk."})
    writer.FloatTensor(name, {1}, {0});
  ASSERT_OK_AND_ASSIGN(const auto file, Open(writer.Build()));
  std::vector<std::string> names;
  for (const TensorInfo& info : file->tensors()) names.push_back(info.name);
  EXPECT_THAT(
      names,
      ElementsAre("model.embed_tokens.weight", "model.norm.weight",
                  "lm_head.weight", "model.layers.11.input_layernorm.weight",
                  "model.layers.11.self_attn.q_proj.weight",
                  "model.layers.11.self_attn.k_proj.bias",
                  "model.layers.11.self_attn.v_proj.weight",
                  "model.layers.11.self_attn.o_proj.weight",
                  "model.layers.11.self_attn.q_norm.weight",
                  "model.layers.11.self_attn.k_norm.weight",
                  "model.layers.11.post_attention_layernorm.weight",
                  "model.layers.11.mlp.gate_proj.weight",
                  "model.layers.11.mlp.up_proj.weight",
                  "model.layers.11.mlp.down_proj.weight",
                  "blk.11.ffn_gate_inp.weight", "blk.weight", "blk."));
}

// Two heads of head_dim 6: stored (interleaved) row 2i + s of a head is row
// 3s + i of the model.
TEST(GgufFileTest, LlamaQueryAndKeyRowsReturnToRotateHalfOrder) {
  const auto build = [](const char* architecture) {
    return GgufTestWriter()
        .String("general.architecture", architecture)
        .Int("llama.attention.head_count", 2)
        .Int("llama.attention.head_count_kv", 1)
        .FloatTensor("blk.0.attn_q.weight", {12, 1}, Sequence(12))
        .FloatTensor("blk.0.attn_k.weight", {6, 1}, Sequence(6))
        .FloatTensor("blk.0.attn_v.weight", {6, 1}, Sequence(6))
        .Build();
  };
  std::vector<float> q(12), k(6), v(6);
  const auto read = [&](const GgufFile& file) {
    EXPECT_OK(file.ReadFloat("model.layers.0.self_attn.q_proj.weight", {12, 1},
                             q.data()));
    EXPECT_OK(file.ReadFloat("model.layers.0.self_attn.k_proj.weight", {6, 1},
                             k.data()));
    EXPECT_OK(file.ReadFloat("model.layers.0.self_attn.v_proj.weight", {6, 1},
                             v.data()));
  };
  ASSERT_OK_AND_ASSIGN(const auto llama, Open(build("llama")));
  read(*llama);
  EXPECT_THAT(q, ElementsAre(0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11));
  EXPECT_THAT(k, ElementsAre(0, 2, 4, 1, 3, 5));
  EXPECT_EQ(v, Sequence(6));
  ASSERT_OK_AND_ASSIGN(const auto qwen, Open(build("qwen2")));
  read(*qwen);
  EXPECT_EQ(q, Sequence(12));
  EXPECT_EQ(k, Sequence(6));
}

TEST(GgufFileTest, NaNInAScaleIsRefused) {
  ASSERT_OK_AND_ASSIGN(
      const auto file,
      Open(GgufTestWriter()
               .Tensor("t", {2, 32}, 8,
                       std::string(34, '\0') + Bytes<uint16_t>(0x7e00) +
                           std::string(32, '\1'))
               .Build()));
  float out[64];
  EXPECT_THAT(file->ReadFloat("t", {2, 32}, out),
              StatusIs(kInvalid, AllOf(HasSubstr("nan"), HasSubstr("[1, 0]"))));
}

struct BadFile {
  const char* name;
  std::string bytes;
  absl::StatusCode code;
  const char* message;
};

std::vector<BadFile> BadFiles() {
  const GgufTestWriter empty;
  const auto tensor = [](std::vector<int64_t> shape, uint32_t type,
                         uint64_t offset) {
    return GgufTestWriter().TensorEntry("t", shape, type, offset).Build();
  };
  const std::string four = FloatBytes({1, 2, 3, 4});
  return {
      {"Empty", "", kInvalid, "the magic at byte 0 takes 4 bytes"},
      {"Magic", "GGML" + std::string(64, '\0'), kInvalid,
       "begins with \"GGML\""},
      {"Version2", "GGUF" + Bytes<uint32_t>(2) + std::string(16, '\0'),
       kUnimplemented, "GGUF version is 2 but must be 3"},
      {"BigEndian", "GGUF" + Bytes<uint32_t>(0x03000000), kUnimplemented,
       "big-endian"},
      {"TensorCount", empty.Build(uint64_t{1} << 60, 0), kInvalid,
       "tensor count is 1152921504606846976 but the"},
      {"MetadataCount", empty.Build(0, uint64_t{1} << 60), kInvalid,
       "metadata count is 1152921504606846976 but the"},
      {"KeyLength",
       "GGUF" + Bytes<uint32_t>(3) + Bytes<uint64_t>(0) + Bytes<uint64_t>(1) +
           Bytes(~uint64_t{0}) + std::string(32, '\0'),
       kInvalid, "metadata key at byte 32 takes 18446744073709551615 bytes"},
      {"LongKey", GgufTestWriter().Int(std::string(70000, 'k'), 1).Build(),
       kInvalid, "metadata key at byte 32 is 70000 bytes long but at most"},
      {"StringLength",
       GgufTestWriter().Raw("k", 8, Bytes(uint64_t{1} << 62)).Build(), kInvalid,
       "metadata \"k\": string at byte"},
      {"ArrayLength",
       GgufTestWriter()
           .Raw("k", 9, Bytes<uint32_t>(4) + Bytes(uint64_t{1} << 62))
           .Build(),
       kInvalid, "metadata \"k\": array length is 4611686018427387904"},
      {"StringArrayLength",
       GgufTestWriter()
           .Raw("k", 9, Bytes<uint32_t>(8) + Bytes(uint64_t{1} << 61))
           .Build(),
       kInvalid, "array length is 2305843009213693952"},
      {"ValueType", GgufTestWriter().Raw("k", 13, "").Build(), kInvalid,
       "value type 13 is unknown"},
      {"ElementTypeOfArray",
       GgufTestWriter()
           .Raw("k", 9, Bytes<uint32_t>(99) + Bytes<uint64_t>(0))
           .Build(),
       kInvalid, "value type 99 is unknown"},
      {"DeepArray",
       GgufTestWriter()
           .Raw("k", 9,
                [] {
                  std::string nested;
                  for (int i = 0; i < 1000; ++i)
                    nested += Bytes<uint32_t>(9) + Bytes<uint64_t>(1);
                  return nested;
                }())
           .Build(),
       kInvalid, "nested more than 4 deep"},
      {"Bool", GgufTestWriter().Raw("k", 7, "\x02").Build(), kInvalid,
       "a bool is neither 0 nor 1"},
      {"KeyTwice", GgufTestWriter().Int("k", 1).Int("k", 1).Build(), kInvalid,
       "metadata \"k\" occurs twice"},
      {"AlignmentZero", GgufTestWriter().Int("general.alignment", 0).Build(),
       kInvalid, "general.alignment is 0 but must be a power of two"},
      {"AlignmentOdd", GgufTestWriter().Int("general.alignment", 48).Build(),
       kInvalid, "general.alignment is 48"},
      {"AlignmentHuge",
       GgufTestWriter().Int("general.alignment", 1u << 31).Build(), kInvalid,
       "general.alignment is 2147483648"},
      {"AlignmentText",
       GgufTestWriter().String("general.alignment", "32").Build(), kInvalid,
       "\"general.alignment\" is string"},
      {"Rank0", tensor({}, 0, 0), kInvalid, "rank is 0"},
      {"Rank5", tensor({1, 1, 1, 1, 1}, 0, 0), kInvalid, "rank is 5"},
      {"EmptyShape", tensor({4, 0}, 0, 0), kInvalid, "shape [4, 0] is empty"},
      {"NegativeDimension", tensor({-4, -4}, 0, 0), kInvalid,
       "negative dimension"},
      {"ElementOverflow", tensor({int64_t{1} << 40, int64_t{1} << 40}, 0, 0),
       kInvalid, "too many elements"},
      {"ByteOverflow", tensor({int64_t{1} << 31, int64_t{1} << 31}, 0, 0),
       kInvalid, "too many elements"},
      {"BlockSize", tensor({2, 100}, 12, 0), kInvalid,
       "shape [2, 100] must end in a multiple of 256, the block size of Q4_K"},
      {"UnsupportedType", tensor({2, 256}, 10, 0), kUnimplemented,
       "tensor \"t\": element type Q2_K is not supported; fetch or make"},
      {"UnknownType", tensor({2, 256}, 1000, 0), kInvalid,
       "element type 1000 is unknown"},
      {"OutsideTheFile", tensor({4}, 0, 32), kInvalid,
       "takes 16 bytes at offset 32 but the file has 0 bytes of data"},
      {"OffsetOverflow", tensor({4}, 0, ~uint64_t{31}), kInvalid,
       "takes 16 bytes at offset 18446744073709551584"},
      {"Unaligned", tensor({4}, 0, 4), kInvalid,
       "multiple of general.alignment"},
      {"LongTensorName",
       GgufTestWriter().Tensor(std::string(65, 't'), {4}, 0, four).Build(),
       kInvalid, "tensor name at byte 32 is 65 bytes long but at most 64"},
      {"TensorTwice",
       GgufTestWriter()
           .Tensor("t", {4}, 0, four)
           .Tensor("t", {4}, 0, four)
           .Build(),
       kInvalid, "tensor \"t\" occurs twice"},
      {"TwoNamesForOne",
       GgufTestWriter()
           .Tensor("output_norm.weight", {4}, 0, four)
           .Tensor("model.norm.weight", {4}, 0, four)
           .Build(),
       kInvalid, "tensor \"model.norm.weight\" occurs twice"},
      {"Overlap",
       GgufTestWriter()
           .TensorEntry("a", {16}, 0, 0)
           .Tensor("b", {16}, 0, std::string(64, '\0'))
           .Build(),
       kInvalid, "overlap"},
      {"HeadsDoNotDivide",
       GgufTestWriter()
           .String("general.architecture", "llama")
           .Int("llama.attention.head_count", 3)
           .Tensor("blk.0.attn_q.weight", {4, 1}, 0, four)
           .Build(),
       kInvalid, "does not divide into 3 heads of an even head_dim"},
      {"NoHeads",
       GgufTestWriter()
           .String("general.architecture", "llama")
           .Tensor("blk.0.attn_q.weight", {4, 1}, 0, four)
           .Build(),
       absl::StatusCode::kNotFound, "llama.attention.head_count"},
  };
}

class BadGgufTest : public ::testing::TestWithParam<BadFile> {};

TEST_P(BadGgufTest, IsRefusedWithTheReason) {
  EXPECT_THAT(Open(GetParam().bytes),
              StatusIs(GetParam().code, AllOf(HasSubstr("m.gguf: "),
                                              HasSubstr(GetParam().message))));
}

INSTANTIATE_TEST_SUITE_P(Files, BadGgufTest, ::testing::ValuesIn(BadFiles()),
                         [](const auto& info) {
                           return std::string(info.param.name);
                         });

TEST(GgufFileTest, ControlBytesOfAFileDoNotReachTheTerminal) {
  const auto file = Open(GgufTestWriter().Raw("\x1b[31m\n", 13, "").Build());
  EXPECT_THAT(file.status(), StatusIs(kInvalid, HasSubstr("\\x1b[31m\\n")));
}

}  // namespace
}  // namespace kvmix
