// Every planted bug is found, in the way that each variant can find it, and
// every mended twin is clean.
#include "tools/cuda_emulator/planted_bugs.h"

#include <cstring>
#include <ostream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvmix/base/device_vector.h"
#include "tools/cuda_emulator/emulator.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;

// How a bug shows in a variant.
enum How {
  kNot,
  kDiffers,   // results differ between seeds or poisons
  kReported,  // by the emulator, with `text`
  kDies,      // under ASan or UBSan, with `text`
};

struct Case {
  const char* name;
  How fast, asan, check;
  const char* text;        // of the report of fast and asan, or the death
  const char* check_text;  // of the report of check
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.name;
}

const Case kCases[] = {
    {"MissingBarrier", kDiffers, kDiffers, kReported, "",
     "MissingBarrier|uninitialised|race"},
    {"BarrierBeforeReuse", kDiffers, kDiffers, kReported, "", "race"},
    {"MissingSyncwarp", kDiffers, kDiffers, kReported, "",
     "uninitialised|race"},
    {"EarlyExit", kReported, kReported, kReported, "divergent barrier",
     "divergent barrier"},
    {"SkippedBarrier", kReported, kReported, kReported, "divergent barrier",
     "divergent barrier"},
    {"GlobalPastEnd", kNot, kDies, kReported, "AddressSanitizer",
     "wild access"},
    {"SharedPastEnd", kDiffers, kDies, kReported,
     "AddressSanitizer|out of bounds", "wild access"},
    {"DynamicPastEnd", kDiffers, kDies, kReported, "AddressSanitizer",
     "wild access"},
    {"UninitialisedShared", kDiffers, kDiffers, kReported, "", "uninitialised"},
    {"MissingAsyncWait", kDiffers, kDiffers, kReported, "", "uninitialised"},
    {"ShuffleInBranch", kReported, kReported, kReported, "takes no part|stuck",
     "takes no part|stuck"},
    {"InterBlock", kDiffers, kDiffers, kReported, "", "of another block"},
    {"LastBlockWithoutFence", kNot, kNot, kReported, "", "of another block"},
    {"MisalignedVector", kNot, kDies, kNot, "misaligned", ""},
    {"LocalArrayPastEnd", kNot, kDies, kNot, "AddressSanitizer|out of bounds",
     ""},
    {"Trapped", kReported, kReported, kReported, "__trap in thread 3",
     "__trap"},
};

How Expected(const Case& c) {
#if defined(EMU_CHECK)
  return c.check;
#elif defined(__SANITIZE_ADDRESS__)
  return c.asan;
#else
  return c.fast;
#endif
}

std::string ExpectedText(const Case& c) {
#if defined(EMU_CHECK)
  return c.check_text;
#else
  return c.text;
#endif
}

// The results of a bug under three seeds, the third with another poison.
std::vector<std::vector<float>> RunThrice(const Case& c, bool fixed) {
  const emu::Options before = emu::options();
  std::vector<std::vector<float>> results;
  for (int seed = 1; seed <= 3; ++seed) {
    emu::options().order = emu::Order::kShuffled;
    emu::options().seed = seed;
    emu::options().poison = seed == 3 ? 0x55 : 0xFF;
    DeviceVector<float> d(std::vector<float>(200, 0.0f));
    const int n = std::string(c.name) == "EarlyExit" ? 100 : 200;
    EXPECT_NE(RunPlantedBug(c.name, fixed, d.data(), n), cudaErrorInvalidValue);
    results.push_back(d.ToHost());
  }
  emu::options() = before;
  return results;
}

bool Same(const std::vector<std::vector<float>>& results) {
  for (const std::vector<float>& r : results) {
    // Bits, since poison is NaN.
    if (std::memcmp(r.data(), results[0].data(), r.size() * sizeof(float)))
      return false;
  }
  return true;
}

class PlantedBugsTest : public testing::TestWithParam<Case> {};

TEST_P(PlantedBugsTest, BugIsFound) {
  const Case& c = GetParam();
  const std::string text = ExpectedText(c);
  switch (Expected(c)) {
    case kDies:
      GTEST_FLAG_SET(death_test_style, "threadsafe");
      EXPECT_DEATH(RunThrice(c, false), testing::ContainsRegex(text));
      break;
    case kReported:
      RunThrice(c, false);
      EXPECT_THAT(emu::TakeReports(), testing::ContainsRegex(text));
      break;
    case kDiffers:
      EXPECT_FALSE(Same(RunThrice(c, false)));
      break;
    case kNot:
      break;  // undefined: it may do anything
  }
}

TEST_P(PlantedBugsTest, MendedTwinIsClean) {
  EXPECT_TRUE(Same(RunThrice(GetParam(), true)));
  EXPECT_EQ(emu::TakeReports(), "");
}

INSTANTIATE_TEST_SUITE_P(All, PlantedBugsTest, testing::ValuesIn(kCases),
                         [](const auto& info) {
                           return std::string(info.param.name);
                         });

#ifdef EMU_CHECK
TEST(CheckerTest, ReportNamesFileLineAndThreads) {
  DeviceVector<float> d(std::vector<float>(200, 0.0f));
  RunPlantedBug("InterBlock", false, d.data(), 200);
  EXPECT_THAT(emu::TakeReports(),
              testing::ContainsRegex(
                  "race: .* in device memory.byte [0-9]+., thread [0-9]+ block "
                  "[0-9]+ against thread .* at planted_bugs.cu:[0-9]+"));
}

TEST(CheckerTest, KernelGivenHostMemoryIsAWildAccess) {
  std::vector<float> host(200, 0.0f);
  RunPlantedBug("MissingBarrier", true, host.data(), 200);
  EXPECT_THAT(emu::TakeReports(), HasSubstr("wild access"));
}
#endif

#ifdef __SANITIZE_ADDRESS__
TEST(AsanTest, HostThatReadsDeviceMemoryDies) {
  DeviceVector<float> d(8);
  volatile float sink = 0;
  EXPECT_DEATH(sink = d.data()[3], "use-after-poison");
  (void)sink;
}
#endif

}  // namespace
}  // namespace kvmix
