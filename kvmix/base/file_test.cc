#include "kvmix/base/file.h"

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::StatusIs;

// An empty folder of the test's own.
class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/file_test.XXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ / name; }
  int NumEntries() const {
    return static_cast<int>(std::distance(fs::directory_iterator(folder_),
                                          fs::directory_iterator()));
  }

  fs::path folder_;
};

std::string BinaryText(size_t size) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 7 % 256);
  return text;
}

TEST_F(FileTest, ReadsWhatWasWritten) {
  for (size_t size : {0, 1, 65536, 200001}) {
    const std::string text = BinaryText(size);
    ASSERT_OK(WriteFileAtomically(Path("f"), text));
    ASSERT_OK_AND_ASSIGN(const std::string back, ReadFile(Path("f")));
    EXPECT_TRUE(back == text) << size;
    ASSERT_OK_AND_ASSIGN(const MappedFile mapped, MappedFile::Open(Path("f")));
    EXPECT_TRUE(mapped.view() == text) << size;
    EXPECT_EQ(mapped.path(), Path("f"));
  }
  EXPECT_EQ(NumEntries(), 1);
}

TEST_F(FileTest, WriteCreatesMissingFolders) {
  ASSERT_OK(WriteFileAtomically(Path("a/b/c"), "x"));
  EXPECT_EQ(*ReadFile(Path("a/b/c")), "x");
}

TEST_F(FileTest, WriteFollowsASymbolicLink) {
  ASSERT_OK(WriteFileAtomically(Path("target"), "old"));
  fs::create_symlink("target", Path("link"));
  ASSERT_OK(WriteFileAtomically(Path("link"), "new"));
  EXPECT_TRUE(fs::is_symlink(Path("link")));
  EXPECT_EQ(*ReadFile(Path("target")), "new");
}

// A limit on the size of files stands for a disk that fills up half way.
TEST_F(FileTest, AFailedWriteKeepsTheOldTextAndLeavesNothingBehind) {
  ASSERT_OK(WriteFileAtomically(Path("f"), "old"));
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, SIG_IGN);
  const rlimit small = {.rlim_cur = 100000, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status status =
      WriteFileAtomically(Path("f"), BinaryText(200000));
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("cannot write " + Path("f") + ": File too large"));
  EXPECT_EQ(*ReadFile(Path("f")), "old");
  EXPECT_EQ(NumEntries(), 1);
}

TEST_F(FileTest, AFullDeviceIsAnErrorAndTheDeviceStays) {
  EXPECT_THAT(WriteFileAtomically("/dev/full", "x"),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       "cannot write /dev/full: No space left on device"));
  EXPECT_TRUE(fs::is_character_file("/dev/full"));
  EXPECT_OK(WriteFileAtomically("/dev/null", "x"));
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

TEST_F(FileTest, ErrorsNameThePathAndTheCause) {
  EXPECT_THAT(
      ReadFile(Path("missing")).status(),
      StatusIs(absl::StatusCode::kNotFound, "cannot read " + Path("missing") +
                                                ": No such file or directory"));
  EXPECT_THAT(MappedFile::Open(Path("missing")).status(),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("cannot open")));
  EXPECT_THAT(std::string(ReadFile(folder_).status().message()),
              HasSubstr("Is a directory"));
  EXPECT_THAT(MappedFile::Open(folder_).status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("is not a regular file")));
  EXPECT_THAT(std::string(WriteFileAtomically(folder_, "x").message()),
              HasSubstr("Is a directory"));
  ASSERT_OK(WriteFileAtomically(Path("f"), "x"));
  EXPECT_THAT(std::string(WriteFileAtomically(Path("f/g"), "x").message()),
              HasSubstr("Not a directory"));
}

TEST_F(FileTest, AnEndlessFileIsRefused) {
  EXPECT_THAT(ReadFile("/dev/zero", 1000000).status(),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("/dev/zero is larger than 1000000 bytes")));
  ASSERT_OK(WriteFileAtomically(Path("f"), "12345"));
  EXPECT_OK(ReadFile(Path("f"), 5));
  EXPECT_FALSE(ReadFile(Path("f"), 4).ok());
}

TEST_F(FileTest, AMappingMoves) {
  ASSERT_OK(WriteFileAtomically(Path("f"), "12345"));
  ASSERT_OK(WriteFileAtomically(Path("g"), "67"));
  ASSERT_OK_AND_ASSIGN(MappedFile f, MappedFile::Open(Path("f")));
  ASSERT_OK_AND_ASSIGN(MappedFile g, MappedFile::Open(Path("g")));
  MappedFile moved = std::move(f);
  EXPECT_EQ(moved.view(), "12345");
  moved = std::move(g);
  EXPECT_EQ(moved.view(), "67");
}

// The mapping outlives the name: what was opened can be read to the end.
TEST_F(FileTest, AMappingOutlivesARename) {
  ASSERT_OK(WriteFileAtomically(Path("f"), "old"));
  ASSERT_OK_AND_ASSIGN(const MappedFile mapped, MappedFile::Open(Path("f")));
  ASSERT_OK(WriteFileAtomically(Path("f"), "new"));
  EXPECT_EQ(mapped.view(), "old");
}

// Kilobytes of mapped files that this process has in memory.
int64_t ResidentFileKilobytes() {
  std::ifstream status("/proc/self/status");
  std::string word;
  int64_t kilobytes = -1;
  while (status >> word)
    if (word == "RssFile:") status >> kilobytes;
  return kilobytes;
}

TEST_F(FileTest, DroppedPagesLeaveMemoryAndReadTheSame) {
  const std::string text(16 << 20, 'x');
  ASSERT_OK(WriteFileAtomically(Path("f"), text));
  ASSERT_OK_AND_ASSIGN(const MappedFile mapped, MappedFile::Open(Path("f")));
  ASSERT_TRUE(mapped.view() == text);
  const int64_t before = ResidentFileKilobytes();
  mapped.DropPages();
  EXPECT_LT(ResidentFileKilobytes(), before - (12 << 10));
  EXPECT_TRUE(mapped.view() == text);
}

}  // namespace
}  // namespace kvmix
