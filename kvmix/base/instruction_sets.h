// Tests of vector kernels on every instruction set that this CPU has and
// Highway compiles for. testonly.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "hwy/highway.h"

namespace kvmix::testing {

inline std::vector<int64_t> InstructionSets() {
  std::vector<int64_t> sets;
  for (int64_t rest = hwy::SupportedTargets() & HWY_TARGETS; rest != 0;
       rest &= rest - 1)
    sets.push_back(rest & -rest);
  return sets;
}

// From now on kernels compute with `set`, those that are not compiled for it
// without vectors. 0: with the best one again.
inline void ForceInstructionSet(int64_t set) {
  hwy::SetSupportedTargetsForTest(set);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

// A suite of tests that each compute with the set that is their parameter.
class InstructionSetTest : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { ForceInstructionSet(GetParam()); }
  void TearDown() override { ForceInstructionSet(0); }
};

struct InstructionSetName {
  template <class Info>
  std::string operator()(const Info& info) const {
    return hwy::TargetName(info.param);
  }
};

}  // namespace kvmix::testing
