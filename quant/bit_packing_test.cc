#include "quant/bit_packing.h"

#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/random.h"

namespace kvmix {
namespace {

std::vector<uint32_t> Pack(const std::vector<uint32_t>& codes, int bits) {
  const int count = static_cast<int>(codes.size());
  std::vector<uint32_t> words(PackedWords(count, bits), ~0u);
  PackCodes(codes.data(), count, bits, words.data(),
            static_cast<int>(words.size()));
  return words;
}

// An octal digit is a 3-bit code, a hexadecimal one a 4-bit code.
TEST(BitPackingTest, FourBitCodesAreTheHexadecimalDigitsOfAWord) {
  EXPECT_EQ(Pack({0, 1, 2, 3, 4, 5, 6, 7, 15, 14}, 4),
            (std::vector<uint32_t>{0x76543210, 0xef}));
}

TEST(BitPackingTest, ThreeBitCodesAreTheOctalDigitsAndRunAcrossWords) {
  // The eleventh code, 6 = 0b110, gives its two low bits to word 0 and its high
  // bit to word 1.
  EXPECT_EQ(Pack({0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 6, 3}, 3),
            (std::vector<uint32_t>{0x80000000u | 01076543210u, 3 << 1 | 1}));
}

TEST(BitPackingTest, OneAndTwoBitCodesFillAWordWithoutCrossing) {
  EXPECT_EQ(Pack(std::vector<uint32_t>(32, 1), 1),
            std::vector<uint32_t>{0xffffffff});
  EXPECT_EQ(Pack({0, 1, 2, 3}, 2), std::vector<uint32_t>{0xe4});
}

TEST(BitPackingTest, ThirtyTwoCodesTakeAsManyWordsAsBits) {
  for (int bits = 1; bits <= 8; ++bits) EXPECT_EQ(PackedWords(32, bits), bits);
  EXPECT_EQ(PackedWords(33, 3), 4);
  EXPECT_EQ(PackedWords(1, 1), 1);
}

TEST(BitPackingTest, UnpackGivesBackEveryCode) {
  CounterRandom random(1, 0);
  for (int bits = 1; bits <= 8; ++bits) {
    for (int count : {1, 7, 8, 11, 31, 32, 33, 64, 100}) {
      std::vector<uint32_t> codes(count);
      for (uint32_t& code : codes)
        code = static_cast<uint32_t>(random.Below(uint64_t{1} << bits));
      const std::vector<uint32_t> words = Pack(codes, bits);
      for (int i = 0; i < count; ++i)
        EXPECT_EQ(
            UnpackCode(words.data(), static_cast<int>(words.size()), bits, i),
            codes[i])
            << bits << " bits, code " << i << " of " << count;
    }
  }
}

TEST(BitPackingTest, AStringCutAtOneWordIsKvmixsWordOfEleven) {
  const std::vector<uint32_t> codes = {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2};
  uint32_t word = 0;
  PackCodes(codes.data(), 11, 3, &word, 1);
  EXPECT_EQ(word, 2u << 30 | 01076543210u);
  for (int i = 0; i < 11; ++i) EXPECT_EQ(UnpackCode(&word, 1, 3, i), codes[i]);
}

}  // namespace
}  // namespace kvmix
