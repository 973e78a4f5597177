#include "experiments/npy.h"

#include <cstring>
#include <filesystem>

#include "kvmix/base/file.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

TEST(NpyTest, WritesTheDocumentedBytes) {
  const std::string path = ::testing::TempDir() + "/a.npy";
  {
    ASSERT_OK_AND_ASSIGN(NpyWriter writer, NpyWriter::Create(path, 3, 2));
    const float values[] = {1, 2, 3, 4, 5, 6};
    ASSERT_OK(writer.Append(values, 1));
    ASSERT_OK(writer.Append(values + 2, 2));
    ASSERT_OK(writer.Finish());
  }
  ASSERT_OK_AND_ASSIGN(const std::string bytes, ReadFile(path));
  EXPECT_EQ(bytes.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8));
  const size_t length = static_cast<uint8_t>(bytes[8]) + 256 * bytes[9];
  EXPECT_EQ((10 + length) % 64, 0u);
  EXPECT_THAT(bytes.substr(10, length),
              HasSubstr("{'descr': '<f4', 'fortran_order': False, 'shape': "
                        "(3, 2), }"));
  EXPECT_EQ(bytes[9 + length], '\n');
  ASSERT_EQ(bytes.size(), 10 + length + 24);
  float last;
  std::memcpy(&last, bytes.data() + bytes.size() - 4, 4);
  EXPECT_EQ(last, 6);
}

TEST(NpyTest, AnUnfinishedFileDisappears) {
  const std::string path = ::testing::TempDir() + "/b.npy";
  { ASSERT_OK_AND_ASSIGN(NpyWriter writer, NpyWriter::Create(path, 3, 2)); }
  EXPECT_FALSE(fs::exists(path));
  EXPECT_FALSE(fs::exists(path + ".tmp"));
}

TEST(NpyTest, AFullDiskIsAnErrorAndTheDeviceStays) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  ASSERT_OK_AND_ASSIGN(NpyWriter writer, NpyWriter::Create("/dev/full", 1, 1));
  const float value = 1;
  absl::Status status = writer.Append(&value, 1);
  if (status.ok()) status = writer.Finish();
  EXPECT_THAT(status.ToString(), HasSubstr("/dev/full"));
  EXPECT_TRUE(fs::is_character_file("/dev/full"));
  EXPECT_FALSE(fs::exists("/dev/full.tmp"));
}

TEST(NpyTest, AMissingFolderIsAnError) {
  EXPECT_EQ(NpyWriter::Create("/no/such/folder/x.npy", 1, 1).status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace kvmix
