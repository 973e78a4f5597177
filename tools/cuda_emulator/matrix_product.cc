#include "tools/cuda_emulator/matrix_product.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tools/cuda_emulator/matrix_product.cc"
// clang-format off
#include "hwy/foreach_target.h"  // before the others
#include "hwy/highway.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace emu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, 16>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Floats()));
// Of c, whose sums stay in registers.
constexpr int kRows = 2 * kLanes, kColumns = 4;

// kRows rows of c, kCount columns; panel [k][kRows].
template <int kCount>
HWY_INLINE void MultiplyPanel(const float* panel, const float* b, int k,
                              int rows, int m, float* c) {
  hn::Vec<Floats> sum[2 * kCount];
#pragma GCC unroll 8
  for (int i = 0; i < 2 * kCount; ++i) sum[i] = hn::Zero(Floats());
  for (int q = 0; q < k; ++q) {
    const auto upper = hn::LoadU(Floats(), panel + int64_t{q} * kRows);
    const auto lower = hn::LoadU(Floats(), panel + int64_t{q} * kRows + kLanes);
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) {
      const auto factor = hn::Set(Floats(), b[int64_t{j} * k + q]);
      sum[2 * j] = hn::MulAdd(upper, factor, sum[2 * j]);
      sum[2 * j + 1] = hn::MulAdd(lower, factor, sum[2 * j + 1]);
    }
  }
  float columns[kCount][kRows];
#pragma GCC unroll 8
  for (int i = 0; i < 2 * kCount; ++i)
    hn::StoreU(sum[i], Floats(), columns[i / 2] + i % 2 * kLanes);
  for (int j = 0; j < kCount; ++j)
    std::copy_n(columns[j], rows, c + int64_t{j} * m);
}

void Multiply(const float* a, const float* b, int m, int n, int k, float* c) {
  std::vector<float> panel(int64_t{k} * kRows);
  for (int i = 0; i < m; i += kRows) {
    const int rows = std::min(kRows, m - i);
    for (int q = 0; q < k; ++q)
      std::copy_n(a + int64_t{q} * m + i, rows,
                  panel.data() + int64_t{q} * kRows);
    int j = 0;
    for (; j + kColumns <= n; j += kColumns)
      MultiplyPanel<kColumns>(panel.data(), b + int64_t{j} * k, k, rows, m,
                              c + int64_t{j} * m + i);
    for (; j < n; ++j)
      MultiplyPanel<1>(panel.data(), b + int64_t{j} * k, k, rows, m,
                       c + int64_t{j} * m + i);
  }
}

}  // namespace emu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace emu {

HWY_EXPORT(Multiply);

void MatrixProduct(const float* a, const float* b, int m, int n, int k,
                   float* c) {
  HWY_DYNAMIC_DISPATCH(Multiply)(a, b, m, n, k, c);
}

}  // namespace emu
#endif  // HWY_ONCE
