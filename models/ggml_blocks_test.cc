// Decoding against the gguf package: every_type.gguf holds blocks of each type,
// every_type.safetensors what the package makes of them
// (tools/make_gguf_goldens.py).
#include "models/ggml_blocks.h"

#include <bit>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kvmix/base/file.h"
#include "kvmix/base/half.h"
#include "kvmix/base/status_matchers.h"
#include "models/gguf.h"
#include "models/safetensors.h"

namespace kvmix {
namespace {

constexpr char kGguf[] = "models/testdata/every_type.gguf";
constexpr char kExpected[] = "models/testdata/every_type.safetensors";

class GoldenBlocksTest : public ::testing::TestWithParam<const char*> {};

TEST_P(GoldenBlocksTest, EveryWeightEqualsThePackageBitForBit) {
  ASSERT_OK_AND_ASSIGN(const auto stored, GgufFile::Open(kGguf));
  ASSERT_OK_AND_ASSIGN(const auto mapped, MappedFile::Open(kExpected));
  ASSERT_OK_AND_ASSIGN(
      const auto expected,
      SafetensorsFiles::FromBytes(mapped.view(), nullptr, kExpected));
  ASSERT_OK_AND_ASSIGN(const TensorInfo* info, stored->Find(GetParam()));
  EXPECT_EQ(LayoutOf(info->type).name, GetParam());
  ASSERT_OK_AND_ASSIGN(const int64_t count, CountElements(info->shape));
  std::vector<float> ours(count), theirs(count);
  ASSERT_OK(stored->ReadFloat(GetParam(), info->shape, ours.data()));
  ASSERT_OK(expected->ReadFloat(GetParam(), info->shape, theirs.data()));
  int nonzero = 0;
  for (int64_t i = 0; i < count; ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(ours[i]),
              std::bit_cast<uint32_t>(theirs[i]))
        << i << ": " << ours[i] << " against " << theirs[i];
    nonzero += ours[i] != 0;
  }
  EXPECT_GT(nonzero, count / 2);
}

INSTANTIATE_TEST_SUITE_P(AllTypes, GoldenBlocksTest,
                         ::testing::Values("F32", "F16", "BF16", "Q4_0", "Q4_1",
                                           "Q5_0", "Q5_1", "Q8_0", "Q4_K",
                                           "Q5_K", "Q6_K"),
                         [](const auto& info) {
                           return std::string(info.param);
                         });

TEST(GgmlBlocksTest, LowNibblesAreTheFirstHalfOfABlock) {
  uint8_t block[18] = {};
  const uint16_t scale = ToHalf(0.5f).bits;
  std::memcpy(block, &scale, sizeof(scale));
  for (int i = 0; i < 16; ++i)
    block[2 + i] = static_cast<uint8_t>(i | (15 - i) << 4);
  float x[32];
  DecodeBlocks(ElementType::kQ4_0, block, 32, x);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(x[i], 0.5f * static_cast<float>(i - 8));
    EXPECT_EQ(x[16 + i], 0.5f * static_cast<float>(7 - i));
  }
}

TEST(GgmlBlocksTest, SourceMayLieAtAnyAddress) {
  const float values[2] = {1.25f, -3.5f};
  uint8_t bytes[1 + sizeof(values)];
  std::memcpy(bytes + 1, values, sizeof(values));
  float x[2];
  DecodeBlocks(ElementType::kF32, bytes + 1, 2, x);
  EXPECT_EQ(x[0], 1.25f);
  EXPECT_EQ(x[1], -3.5f);
}

}  // namespace
}  // namespace kvmix
