// main() of a test that runs on the emulator: every repetition has another
// seed, the last ones another poison and order, and no test passes while the
// emulator reports something.
#include <cstdio>

#include "gtest/gtest.h"
#include "tools/cuda_emulator/emulator.h"

namespace {

class EmulatorListener final : public testing::EmptyTestEventListener {
  void OnTestIterationStart(const testing::UnitTest&, int iteration) override {
    emu::options().seed = static_cast<uint64_t>(iteration) + 1;
    emu::options().poison = iteration % 3 == 1 ? 0x55 : 0xFF;
    emu::options().order =
        iteration % 3 == 2 ? emu::Order::kDescending : emu::Order::kShuffled;
    std::printf("emulator: seed %d, poison %#x, %s\n", iteration + 1,
                emu::options().poison,
                iteration % 3 == 2 ? "descending" : "shuffled");
  }
  void OnTestEnd(const testing::TestInfo&) override {
    EXPECT_EQ(emu::TakeReports(), "") << "found by the CUDA emulator";
    cudaGetLastError();
  }
};

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  testing::UnitTest::GetInstance()->listeners().Append(new EmulatorListener);
  return RUN_ALL_TESTS();
}
