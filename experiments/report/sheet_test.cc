// The page on which people judge continuations, and its key.
#include <atomic>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "experiments/commands.h"
#include "experiments/record.pb.h"
#include "experiments/small_experiment.h"
#include "experiments/text_proto.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::kvmix::testing::EmptyFolder;
using ::kvmix::testing::StatusIs;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kPrompts = 20;

class SheetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = EmptyFolder("sheet");
    ASSERT_OK(WriteFileAtomically(
        folder_ + "/record.textproto",
        "method { name: \"FP16\" } method { name: \"KVmix\" }"));
    for (int i = 0; i < kPrompts; ++i) {
      WindowRecord window;
      window.set_prompt(absl::StrCat("prompt ", i, " <b>"));
      window.add_method()->set_text("full");
      window.add_method()->set_text("less");
      ASSERT_OK(WriteFileAtomically(
          absl::StrCat(folder_, "/windows/0_", 100 + i, ".pb"),
          window.SerializeAsString()));
    }
  }

  absl::Status Write(const std::string& method) {
    const std::atomic<bool> stop = false;
    return SheetCommand({folder_, absl::StrCat("--method=", method),
                         absl::StrCat("--output=", folder_, "/out")},
                        stop);
  }

  std::string folder_;
};

TEST_F(SheetTest, TheKeySaysWhichIsWhichAndThePageDoesNot) {
  ASSERT_OK(Write("KVmix"));
  ASSERT_OK_AND_ASSIGN(const std::string html,
                       ReadFile(folder_ + "/out/sheet.html"));
  ASSERT_OK_AND_ASSIGN(const std::string key,
                       ReadFile(folder_ + "/out/key.csv"));
  EXPECT_THAT(html, Not(HasSubstr("KVmix")));
  EXPECT_THAT(html, Not(HasSubstr("FP16")));
  EXPECT_THAT(html, HasSubstr("prompt 7 &lt;b&gt;"));
  const std::vector<std::string> sections = absl::StrSplit(html, "<section>");
  const std::vector<std::string> lines = absl::StrSplit(key, '\n');
  ASSERT_EQ(sections.size(), kPrompts + 1u);
  EXPECT_EQ(lines[0], "row,A,B");
  int full_first = 0;
  for (int row = 1; row <= kPrompts; ++row) {
    const bool full_is_a = lines[row] == absl::StrCat(row, ",FP16,KVmix");
    full_first += full_is_a;
    EXPECT_THAT(sections[row],
                HasSubstr(full_is_a ? "<b>A</b> full" : "<b>A</b> less"));
    EXPECT_THAT(sections[row],
                HasSubstr(full_is_a ? "<b>B</b> less" : "<b>B</b> full"));
    EXPECT_THAT(sections[row],
                HasSubstr(absl::StrCat("prompt ", row - 1, " ")));
  }
  EXPECT_GT(full_first, 3);  // of 20, drawn evenly
  EXPECT_LT(full_first, 17);
}

TEST_F(SheetTest, WhatCannotBeJudgedIsSaid) {
  EXPECT_THAT(Write("FP16"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("it has KVmix")));
  ASSERT_OK(WriteFileAtomically(folder_ + "/windows/0_100.pb", "\x08"));
  EXPECT_THAT(Write("KVmix"), StatusIs(absl::StatusCode::kDataLoss,
                                       HasSubstr("0_100.pb is damaged")));
}

}  // namespace
}  // namespace kvmix
