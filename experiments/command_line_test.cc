#include "experiments/command_line.h"

#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::kvmix::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class CommandLineTest : public ::testing::Test {
 protected:
  CommandLineTest() : command_line_("kvmix test", "Tests.") {
    command_line_.Flag("text-file", &text_, "a file");
    command_line_.Flag("count", &count_, "a number");
    command_line_.Flag("dry_run", &dry_run_, "do nothing");
    command_line_.Flag("set", &set_, "many");
  }
  CommandLine command_line_;
  std::string text_ = "default";
  int count_ = 3;
  bool dry_run_ = false;
  std::vector<std::string> set_;
};

TEST_F(CommandLineTest, FlagsAndArgumentsMix) {
  ASSERT_OK_AND_ASSIGN(
      const std::vector<std::string> arguments,
      command_line_.Parse({"one", "--text_file", "f", "--set=a=b", "--dry-run",
                           "two", "--set", "c=d", "--count=-4", "--", "--x"}));
  EXPECT_THAT(arguments, ElementsAre("one", "two", "--x"));
  EXPECT_EQ(text_, "f");
  EXPECT_EQ(count_, -4);
  EXPECT_TRUE(dry_run_);
  EXPECT_THAT(set_, ElementsAre("a=b", "c=d"));
}

TEST_F(CommandLineTest, MistakesAreUsageErrors) {
  for (const std::vector<std::string>& args :
       std::vector<std::vector<std::string>>{{"--nope"},
                                             {"--count=x"},
                                             {"--count"},
                                             {"-q"},
                                             {"--dry_run=maybe"}}) {
    const absl::Status status = command_line_.Parse(args).status();
    EXPECT_TRUE(IsUsageError(status)) << args[0] << " " << status;
  }
  EXPECT_FALSE(IsUsageError(absl::InvalidArgumentError("other")));
}

TEST_F(CommandLineTest, HelpNamesEveryFlagWithItsDefault) {
  const absl::Status status =
      command_line_.Parse({"--help", "--nope"}).status();
  EXPECT_FALSE(IsUsageError(status));
  const std::optional<std::string> help = HelpText(status);
  ASSERT_TRUE(help.has_value()) << status;
  EXPECT_THAT(*help, HasSubstr("usage: kvmix test"));
  EXPECT_THAT(*help, HasSubstr("--text-file=..."));
  EXPECT_THAT(*help, HasSubstr("(default: default)"));
  EXPECT_THAT(*help, HasSubstr("(default: 3)"));
  EXPECT_FALSE(HelpText(absl::OkStatus()).has_value());
  EXPECT_FALSE(HelpText(UsageError("x")).has_value());
}

TEST_F(CommandLineTest, ACommandMayTakeFlagsOnly) {
  EXPECT_OK(command_line_.ParseFlags({"--count=1"}));
  EXPECT_TRUE(IsUsageError(command_line_.ParseFlags({"x"})));
  EXPECT_TRUE(IsUsageError(command_line_.ParseFlags({"--nope"})));
}

}  // namespace
}  // namespace kvmix
