// main() of a test that runs on the emulator: every repetition has another
// seed, the last ones another poison and order, and no test passes while the
// emulator reports something. --emulate_cheaply: as programs do, ascending and
// without what only kernels are tested for.
#include <cstdio>
#include <cstring>

#include "gtest/gtest.h"
#include "tools/cuda_emulator/emulator.h"

namespace {

// Options of a repetition.
void Vary(int iteration) {
  emu::Options& options = emu::options();
  options.seed = static_cast<uint64_t>(iteration) + 1;
  options.poison = iteration % 3 == 1 ? 0x55 : 0xFF;
  options.order =
      iteration % 3 == 2 ? emu::Order::kDescending : emu::Order::kShuffled;
  // Few, but so many that small inputs take the path of several splits.
  options.multiprocessors = 4;
  std::printf("emulator: seed %d, poison %#x, %s\n", iteration + 1,
              options.poison, iteration % 3 == 2 ? "descending" : "shuffled");
}

class EmulatorListener final : public testing::EmptyTestEventListener {
 public:
  explicit EmulatorListener(bool cheap) : cheap_(cheap) {}

 private:
  void OnTestIterationStart(const testing::UnitTest&, int iteration) override {
    if (!cheap_) Vary(iteration);
  }
  void OnTestEnd(const testing::TestInfo&) override {
    EXPECT_EQ(emu::TakeReports(), "") << "found by the CUDA emulator";
    cudaGetLastError();
  }

  const bool cheap_;
};

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const bool cheap = argc > 1 && !std::strcmp(argv[1], "--emulate_cheaply");
  testing::UnitTest::GetInstance()->listeners().Append(
      new EmulatorListener(cheap));
  return RUN_ALL_TESTS();
}
