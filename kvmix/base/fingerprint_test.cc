#include "kvmix/base/fingerprint.h"

#include <set>
#include <string>

#include "gtest/gtest.h"

namespace kvmix {
namespace {

// The published XXH3 value of the empty input, and one that pins this version:
// a change would orphan every folder of results.
TEST(FingerprintTest, IsXxh3) {
  EXPECT_EQ(Fingerprint(""), "2d06800538d394c2");
  EXPECT_EQ(Fingerprint("kvmix"), "5ee8fcb3532e386b");
}

TEST(FingerprintTest, HasSixteenDigitsAlsoWhenItStartsWithZero) {
  std::set<char> first_digits;
  for (int i = 0; i < 500; ++i) {
    const std::string fingerprint = Fingerprint(std::to_string(i));
    ASSERT_EQ(fingerprint.size(), 16u);
    first_digits.insert(fingerprint[0]);
  }
  EXPECT_EQ(first_digits.count('0'), 1u);
}

TEST(FingerprintTest, EveryByteCounts) {
  std::set<std::string> all;
  std::string text(1000, 'a');
  all.insert(Fingerprint(text));
  for (char& c : text) {
    c = 'b';
    all.insert(Fingerprint(text));
    c = 'a';
  }
  EXPECT_EQ(all.size(), 1001u);
}

}  // namespace
}  // namespace kvmix
