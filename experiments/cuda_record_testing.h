// What a run on CUDA must share with the same run on the CPU. testonly.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "experiments/run_experiment.h"
#include "experiments/text_proto.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvmix::testing {

// Both compute in float, but attention on the device rounds queries and softmax
// weights to half, and sums in another order round now and then a key or a
// value to another half, or another code.
struct QualityTolerance {
  double nll;                 // of a token
  double full_precision_nll;  // where there is no code to differ in
  double kl, kl_of_itself;    // of its mean
  double accuracy = 1;        // share of answers; 1: any
};

inline void ExpectSameQuality(const Quality& got, const Quality& want,
                              const QualityTolerance& tolerance,
                              const std::string& method) {
  EXPECT_EQ(got.tokens(), want.tokens()) << method;
  EXPECT_NEAR(
      got.nll(), want.nll(),
      want.kl_mean() == 0 ? tolerance.full_precision_nll : tolerance.nll)
      << method;
  EXPECT_NEAR(got.kl_mean(), want.kl_mean(),
              tolerance.kl + tolerance.kl_of_itself * want.kl_mean())
      << method;
  EXPECT_EQ(got.answers().answers(), want.answers().answers()) << method;
  EXPECT_NEAR(got.answers().accuracy(), want.answers().accuracy(),
              tolerance.accuracy)
      << method;
}

// To the byte on the emulator. A device hands memory out in pages of 2 MiB, and
// keeps code and graphs in it.
inline void ExpectTheDriverCountsWhatIsBilled(const Timings& timings) {
  const bool emulated =
      absl::StrContains(timings.cuda_device(0), "CUDA emulator");
  const int64_t slack = emulated ? 0 : int64_t{512} << 20;
  const DeviceMemoryRecord& memory = timings.device_memory();
  EXPECT_GT(memory.model(), 0);
  EXPECT_GT(memory.passes(), 0);
  EXPECT_GE(memory.in_use(), memory.model() + memory.passes());
  EXPECT_LE(memory.in_use(), memory.model() + memory.passes() + slack);
  for (const MethodSpeed& speed : timings.speed()) {
    EXPECT_GT(speed.cache_bytes(), 0) << speed.method();
    EXPECT_NEAR(speed.device_bytes(), speed.cache_bytes(), slack)
        << speed.method();
  }
}

// Plans and what they say are the same, quality within `tolerance`.
inline void ExpectTheCpusRecord(const ExperimentResult& cuda,
                                const ExperimentResult& cpu,
                                const QualityTolerance& tolerance) {
  EXPECT_EQ(cpu.record.model().device(), "CPU");
  EXPECT_EQ(cuda.record.model().device(), "CUDA");
  EXPECT_NE(cpu.record.fingerprint(), cuda.record.fingerprint());
  ASSERT_EQ(cuda.record.method_size(), cpu.record.method_size());
  for (int m = 0; m < cpu.record.method_size(); ++m) {
    const MethodRecord& want = cpu.record.method(m);
    const MethodRecord& got = cuda.record.method(m);
    EXPECT_EQ(PrintTextProto(got.plan()), PrintTextProto(want.plan()));
    // Profiles that need the model are the device's own.
    const bool without_model =
        want.profile().empty() || absl::StartsWith(want.name(), "random");
    EXPECT_EQ(got.profile().empty(), want.profile().empty());
    EXPECT_EQ(got.profile() == want.profile(), without_model) << want.name();
    EXPECT_THAT(got.attention_kernels(), ::testing::HasSubstr("tensor cores"));
    ASSERT_EQ(got.dataset_size(), want.dataset_size());
    for (int d = 0; d < want.dataset_size(); ++d) {
      ExpectSameQuality(
          got.dataset(d).quality(), want.dataset(d).quality(), tolerance,
          absl::StrCat(want.name(), " on ", want.dataset(d).name()));
      EXPECT_GT(got.dataset(d).memory().bytes(), 0);
    }
  }
  EXPECT_GT(cuda.timings.speed(3).decode(), 0);
  ExpectTheDriverCountsWhatIsBilled(cuda.timings);
  EXPECT_FALSE(cpu.timings.has_device_memory());
  EXPECT_EQ(cpu.timings.speed(0).device_bytes(), 0);
}

}  // namespace kvmix::testing
