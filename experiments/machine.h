// What a run's timings say of the program and the machine.
#pragma once

#include <cstdint>
#include <string>

namespace kvmix {

// "unknown" where it cannot be told.
std::string CpuName();
// The best instruction set that the CPU kernels use here: "AVX2".
std::string InstructionSet();
std::string CompilerName();
// Of the checkout that `bazel run` was called in.
std::string CheckoutCommit();
// Memory that is resident now (VmRSS); 0 if it cannot be told.
int64_t ResidentBytes();
// Most memory that was resident at once (VmHWM); 0 if it cannot be told.
int64_t PeakResidentBytes();

}  // namespace kvmix
