#include "models/safetensors.h"

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_matchers.h"
#include "models/gguf_test_writer.h"

namespace kvmix {
namespace {

using ::kvmix::testing::Bytes;
using ::kvmix::testing::ExactCopy;
using ::kvmix::testing::FloatBytes;
using ::kvmix::testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

std::string File(absl::string_view header, absl::string_view data) {
  return absl::StrCat(Bytes<uint64_t>(header.size()), header, data);
}

absl::StatusOr<std::unique_ptr<SafetensorsFiles>> Open(
    const std::string& bytes) {
  const ExactCopy copy(bytes);
  return SafetensorsFiles::FromBytes(copy.view, copy.owner, "m.safetensors");
}

// An empty folder of this test's own.
std::string NewFolder(absl::string_view name) {
  const std::string folder = absl::StrCat(::testing::TempDir(), "/", name);
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

TEST(SafetensorsTest, ReadsAllThreeTypes) {
  // Header of odd length: the floats lie unaligned.
  ASSERT_OK_AND_ASSIGN(
      const auto file,
      Open(File(R"({"__metadata__":{"format":"pt"},)"
                R"("w":{"dtype":"F32","shape":[2,2],"data_offsets":[4,20]},)"
                R"("h":{"data_offsets":[0,2],"shape":[1],"dtype":"F16"},)"
                R"("b":{"dtype":"BF16","shape":[],"data_offsets":[2,4]}}   )",
                absl::StrCat(Bytes<uint16_t>(0x3e00), Bytes<uint16_t>(0xc000),
                             FloatBytes({1, 2, 3, 4})))));
  std::vector<float> w(4);
  ASSERT_OK(file->ReadFloat("w", {2, 2}, w.data()));
  EXPECT_THAT(w, ElementsAre(1, 2, 3, 4));
  float x = 0;
  ASSERT_OK(file->ReadFloat("h", {1}, &x));
  EXPECT_EQ(x, 1.5f);
  ASSERT_OK(file->ReadFloat("b", {}, &x));
  EXPECT_EQ(x, -2.0f);
}

struct BadFile {
  const char* name;
  std::string bytes;
  const char* message;
  absl::StatusCode code = kInvalid;
};

std::vector<BadFile> BadFiles() {
  const std::string four = FloatBytes({1, 2, 3, 4});
  const auto tensor = [&four](absl::string_view fields) {
    return File(absl::StrCat(R"({"t":{)", fields, "}}"), four);
  };
  return {
      {"Short", "1234567", "has 7 bytes"},
      {"HeaderOver100MB", Bytes<uint64_t>(100'000'001) + "{}",
       "header length is 100000001 but must be at most 2"},
      {"HeaderLength2To63", Bytes(uint64_t{1} << 63) + "{}",
       "header length is 9223372036854775808"},
      {"NoBrace", File(" {}", ""), "header must begin with '{'"},
      {"EmptyHeader", File("", ""), "header must begin with '{'"},
      {"BrokenJson", File("{\"t\":", ""), "header: at \"t\": not valid JSON"},
      {"TrailingText", File("{}x", ""), "not valid JSON"},
      {"DeepJson", File(absl::StrCat("{\"t\":", std::string(100000, '[')), ""),
       "at \"t\": an array is not expected"},
      {"NestedObject", tensor(R"("dtype":{"a":1})"), "an object is not"},
      {"NumberForTensor", File("{\"t\":1}", ""), "a number is not expected"},
      {"NullShape", tensor(R"("shape":null)"), "null is not expected"},
      {"NegativeShape", tensor(R"("shape":[-1])"), "negative number -1"},
      {"FloatShape", tensor(R"("shape":[1.5])"), "the number 1.5 is not"},
      {"HugeShape", tensor(R"("shape":[18446744073709551615])"),
       "18446744073709551615 is too large"},
      {"Rank9", tensor(R"("shape":[1,1,1,1,1,1,1,1,1])"),
       "more than 8 dimensions"},
      {"ThreeOffsets", tensor(R"("data_offsets":[0,1,2])"),
       "data_offsets must be two numbers"},
      {"OneOffset", tensor(R"("data_offsets":[0])"),
       "data_offsets must be two numbers"},
      {"NoOffsets", tensor(R"("dtype":"F32","shape":[4])"),
       "dtype, shape or data_offsets is missing"},
      {"UnknownField", tensor(R"("stride":[4])"),
       "field \"stride\" is unknown"},
      {"FieldTwice", tensor(R"("shape":[4],"shape":[4])"), "occurs twice"},
      {"MetadataNotStrings", File(R"({"__metadata__":{"a":1}})", ""),
       "a number is not expected"},
      {"UnsupportedType",
       tensor(R"("dtype":"F8_E4M3","shape":[16],"data_offsets":[0,16])"),
       "tensor \"t\": dtype is \"F8_E4M3\" but must be F32, F16 or BF16",
       absl::StatusCode::kUnimplemented},
      {"SizeDiffersFromShape",
       tensor(R"("dtype":"F32","shape":[5],"data_offsets":[0,16])"),
       "data_offsets [0, 16] span 16 bytes but shape [5] of F32 takes 20"},
      {"ElementOverflow",
       tensor(R"("dtype":"F32","shape":[4294967296,4294967296],)"
              R"("data_offsets":[0,16])"),
       "too many elements"},
      {"ByteOverflow",
       tensor(R"("dtype":"F32","shape":[2147483648,2147483648],)"
              R"("data_offsets":[0,16])"),
       "too many elements"},
      {"OffsetsReversed",
       tensor(R"("dtype":"F32","shape":[4],"data_offsets":[16,0])"),
       "begins at byte 16"},
      {"OffsetsOutside",
       tensor(R"("dtype":"F32","shape":[8],"data_offsets":[0,32])"),
       "tensors end at byte 32 of the data but it has 16"},
      {"DataLeftOver",
       tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])"),
       "tensors end at byte 8 of the data but it has 16"},
      {"Hole",
       File(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
            R"("b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})",
            four),
       "tensor \"b\" begins at byte 8 of the data but the one before it ends "
       "at 4"},
      {"Overlap",
       File(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},)"
            R"("b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})",
            four),
       "tensor \"b\" begins at byte 8"},
      {"TensorTwice",
       File(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
            R"("a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})",
            four),
       "tensor \"a\" occurs twice"},
  };
}

class BadSafetensorsTest : public ::testing::TestWithParam<BadFile> {};

TEST_P(BadSafetensorsTest, IsRefusedWithTheReason) {
  EXPECT_THAT(Open(GetParam().bytes),
              StatusIs(GetParam().code, AllOf(HasSubstr("m.safetensors: "),
                                              HasSubstr(GetParam().message))));
}

INSTANTIATE_TEST_SUITE_P(Files, BadSafetensorsTest,
                         ::testing::ValuesIn(BadFiles()), [](const auto& info) {
                           return std::string(info.param.name);
                         });

TEST(SafetensorsTest, ShardsAreReadThroughTheIndex) {
  const std::string folder = NewFolder("shards");
  ASSERT_OK(WriteFileAtomically(
      folder + "/1.safetensors",
      File(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
           R"("c":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
           FloatBytes({1, 3}))));
  ASSERT_OK(WriteFileAtomically(
      folder + "/2.safetensors",
      File(R"({"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
           FloatBytes({2}))));
  const std::string index = folder + "/model.safetensors.index.json";
  ASSERT_OK(WriteFileAtomically(
      index, R"({"metadata":{"total_size":8},"weight_map":)"
             R"({"a":"1.safetensors","b":"2.safetensors"}})"));
  ASSERT_OK_AND_ASSIGN(const auto files, SafetensorsFiles::OpenFolder(folder));
  EXPECT_EQ(files->tensors().size(), 2u);  // c is not in the map
  float x = 0;
  ASSERT_OK(files->ReadFloat("a", {1}, &x));
  EXPECT_EQ(x, 1);
  ASSERT_OK(files->ReadFloat("b", {1}, &x));
  EXPECT_EQ(x, 2);

  const auto with_map = [&](absl::string_view json) {
    EXPECT_OK(WriteFileAtomically(index, json));
    return SafetensorsFiles::OpenFolder(folder).status();
  };
  EXPECT_THAT(with_map(R"({"weight_map":{"b":"1.safetensors"}})"),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("tensor \"b\" is not in \"1.safetensors\"")));
  EXPECT_THAT(
      with_map(R"({"weight_map":{"b":"3.safetensors"}})"),
      StatusIs(absl::StatusCode::kNotFound, HasSubstr("3.safetensors")));
  EXPECT_THAT(with_map(R"({"weight_map":{"b":"../secret"}})"),
              StatusIs(kInvalid, HasSubstr("in the same folder")));
  EXPECT_THAT(with_map(R"({"weight_map":{"b":7}})"),
              StatusIs(kInvalid, HasSubstr("weight_map[\"b\"]")));
  for (const char* json : {"", "[", "[]", "{}", "{\"weight_map\":[]}"})
    EXPECT_THAT(with_map(json), StatusIs(kInvalid, HasSubstr("weight_map")));
}

TEST(SafetensorsTest, FolderWithoutWeightsSaysWhatIsNeeded) {
  const std::string folder = NewFolder("empty");
  EXPECT_THAT(SafetensorsFiles::OpenFolder(folder),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("neither model.safetensors nor")));
  ASSERT_OK(WriteFileAtomically(folder + "/pytorch_model.bin", "x"));
  EXPECT_THAT(SafetensorsFiles::OpenFolder(folder),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("save pytorch_model.bin as safetensors")));
}

}  // namespace
}  // namespace kvmix
