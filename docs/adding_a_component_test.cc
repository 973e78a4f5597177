// What adding_a_component.md says beside its C++ code: its BUILD lines are
// those of docs/BUILD, and its config makes the component.
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"
#include "kvmix/base/file.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/importance/importance_estimator.h"

namespace kvmix {
namespace {

// The document's fenced block of a language; it has only one.
std::string Block(const std::string& language) {
  const std::string document = *ReadFile("docs/adding_a_component.md");
  const std::string fence = "```" + language + "\n";
  const size_t begin = document.find(fence);
  EXPECT_NE(begin, std::string::npos) << fence;
  EXPECT_EQ(document.find(fence, begin + 1), std::string::npos) << fence;
  const size_t end = document.find("```", begin + fence.size());
  return document.substr(begin + fence.size(), end - begin - fence.size());
}

TEST(AddingAComponentTest, BuildLinesAreTheOnesThatAreBuilt) {
  const std::string build = *ReadFile("docs/BUILD");
  for (absl::string_view line : absl::StrSplit(Block("python"), '\n')) {
    EXPECT_TRUE(absl::StrContains(build, line))
        << "docs/BUILD lacks: " << std::string(line);
  }
}

TEST(AddingAComponentTest, ConfigMakesTheComponent) {
  const std::string config = Block("textproto");
  const size_t open = config.find('{');
  ASSERT_EQ(config.substr(0, open), "importance_estimator ");
  Component component;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(
      config.substr(open + 1, config.rfind('}') - open - 1), &component));
  EXPECT_OK(Registry<ImportanceEstimator>::Get().Make(component,
                                                      "importance_estimator"));
}

}  // namespace
}  // namespace kvmix
