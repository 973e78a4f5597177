// Tensor cores on the host against a plain loop, bit for bit, with every
// instruction set and every way to give operands.
#include "tools/cuda_emulator/tensor_cores.h"

#include <cuda_fp16.h>

#include <cstring>
#include <ostream>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/instruction_sets.h"

namespace emu {
namespace {

constexpr int kSteps = 3, kProducts = 4;

uint16_t BitsOf(__half h) {
  uint16_t bits;
  std::memcpy(&bits, &h, sizeof bits);
  return bits;
}

// A [s][16][16], B [s][n][16 k][8], D [n][16][8]; every seventh number of B is
// a code, which is a subnormal half.
struct Matrices {
  __half a[kSteps][16][16], b[kSteps][kProducts][16][8];
  float d[kProducts][16][8];

  Matrices() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    int count = 0;
    for (auto& step : a)
      for (auto& row : step)
        for (__half& x : row) x = __half(normal(random));
    for (auto& step : b)
      for (auto& product : step)
        for (auto& row : product)
          for (__half& x : row)
            x = __half(++count % 7 == 0 ? count % 16 * 0x1p-24f
                                        : normal(random));
    for (auto& product : d)
      for (auto& row : product)
        for (float& x : row) x = normal(random);
  }
};

void MultiplyPlainly(Matrices& m) {
  for (int s = 0; s < kSteps; ++s)
    for (int n = 0; n < kProducts; ++n)
      for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 8; ++j)
          for (int k = 0; k < 16; ++k)
            m.d[n][i][j] += static_cast<float>(m.a[s][i][k]) *
                            static_cast<float>(m.b[s][n][k][j]);
}

enum Form { kFragments, kRows, kRowsTransposed };

unsigned PairOf(__half low, __half high) {
  return BitsOf(low) | static_cast<unsigned>(BitsOf(high)) << 16;
}

// What the lanes of a warp hold of the matrices.
struct Warp {
  unsigned a[32][kSteps][4], b[32][kSteps * kProducts][2];
  MatrixRow a_rows[32][kSteps], b_rows[32][kSteps * kProducts / 2];
  float d[32][kProducts][4];

  // PTX ISA, fragments of mma.m16n8k16.
  explicit Warp(const Matrices& m, bool transposed) {
    for (int l = 0; l < 32; ++l) {
      const int group = l >> 2, in_group = l & 3;
      for (int s = 0; s < kSteps; ++s) {
        for (int i = 0; i < 4; ++i) {
          const __half* const row = m.a[s][group + (i & 1 ? 8 : 0)];
          const int column = 2 * in_group + (i >= 2 ? 8 : 0);
          a[l][s][i] = PairOf(row[column], row[column + 1]);
        }
        for (int n = 0; n < kProducts; ++n)
          for (int i = 0; i < 2; ++i) {
            const int k = 2 * in_group + 8 * i;
            b[l][s * kProducts + n][i] =
                PairOf(m.b[s][n][k][group], m.b[s][n][k + 1][group]);
          }
        SetRows(m, transposed, l, s);
      }
      for (int n = 0; n < kProducts; ++n)
        for (int i = 0; i < 4; ++i)
          d[l][n][i] = m.d[n][group + (i >= 2 ? 8 : 0)][2 * in_group + (i & 1)];
    }
  }

  // ldmatrix.x4: lane l gives row l % 8 of matrix l / 8. A's matrices: top,
  // bottom of the left half, then of the right one. B's: upper, lower half of
  // the first product, then of the second.
  void SetRows(const Matrices& m, bool transposed, int l, int s) {
    const int matrix = l / 8, row = l % 8;
    for (int j = 0; j < 8; ++j)
      a_rows[l][s][j] =
          BitsOf(m.a[s][8 * (matrix % 2) + row][8 * (matrix / 2) + j]);
    for (int p = 0; p < kProducts / 2; ++p) {
      const auto& product = m.b[s][2 * p + matrix / 2];
      for (int j = 0; j < 8; ++j)
        b_rows[l][s * kProducts / 2 + p][j] =
            BitsOf(transposed ? product[8 * (matrix % 2) + row][j]
                              : product[8 * (matrix % 2) + j][row]);
    }
  }
};

// Instruction set, A, B.
using Param = std::tuple<int64_t, Form, Form>;

class TensorCoresTest : public testing::TestWithParam<Param> {
 protected:
  void SetUp() override {
    kvmix::testing::ForceInstructionSet(std::get<0>(GetParam()));
  }
  void TearDown() override { kvmix::testing::ForceInstructionSet(0); }
};

TEST_P(TensorCoresTest, EqualAPlainLoopToTheBit) {
  const auto [set, form_of_a, form_of_b] = GetParam();
  Matrices m;
  Warp warp(m, form_of_b == kRowsTransposed);
  std::vector<TensorOperands> operands(32);
  void* lanes[32];
  for (int l = 0; l < 32; ++l) {
    TensorOperands& own = operands[l];
    own.steps = kSteps;
    own.products = kProducts;
    if (form_of_a == kFragments) {
      own.a = warp.a[l];
    } else {
      own.a_rows = warp.a_rows[l];
    }
    if (form_of_b == kFragments) {
      own.b = warp.b[l];
    } else {
      own.b_rows = warp.b_rows[l];
    }
    own.b_transposed = form_of_b == kRowsTransposed;
    own.d = warp.d[l];
    lanes[l] = &own;
  }
  Multiply(lanes, ~0u);
  MultiplyPlainly(m);
  const Warp want(m, false);
  for (int l = 0; l < 32; ++l)
    for (int n = 0; n < kProducts; ++n)
      for (int i = 0; i < 4; ++i)
        EXPECT_EQ(warp.d[l][n][i], want.d[l][n][i])
            << "lane " << l << " product " << n << " register " << i;
}

std::string NameOf(const testing::TestParamInfo<Param>& info) {
  const auto [set, form_of_a, form_of_b] = info.param;
  constexpr const char* kNames[] = {"fragments", "rows", "transposed"};
  return std::string(hwy::TargetName(set)) + "_a_" + kNames[form_of_a] + "_b_" +
         kNames[form_of_b];
}

INSTANTIATE_TEST_SUITE_P(
    All, TensorCoresTest,
    testing::Combine(testing::ValuesIn(kvmix::testing::InstructionSets()),
                     testing::Values(kFragments, kRows),
                     testing::Values(kFragments, kRows, kRowsTransposed)),
    NameOf);

}  // namespace
}  // namespace emu
