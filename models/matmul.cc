#include "models/matmul.h"

#include <algorithm>
#include <cstring>

#include "kvmix/base/check.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/matmul.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvmix::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kWidth = PanelMatrix::kWidth;
using Floats = hn::CappedTag<float, 16>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Floats()));
constexpr int kVectors = kWidth / kLanes;
// Rows whose sums stay in registers: 24 of 32 (AVX-512), 12 of 16 (AVX2).
constexpr int kMaxRows = kVectors <= 2 ? 12 : kVectors <= 4 ? 3 : 1;
// Inner steps whose part of a panel (24 KiB) stays in the first-level cache
// while many rows pass over it.
constexpr int64_t kInnerBlock = 192;

// kRows rows of C through `inner` steps.
template <int kRows>
HWY_INLINE void MultiplyRows(const LeftOperand& a, int64_t inner,
                             const float* HWY_RESTRICT panel,
                             float* HWY_RESTRICT c, int64_t c_stride) {
  const Floats d;
  hn::Vec<Floats> sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = hn::LoadU(d, c + r * c_stride + v * kLanes);
  }
  const float* HWY_RESTRICT x = a.data;
  for (int64_t k = 0; k < inner; ++k) {
    if (kRows == 1) {  // bound by memory
      hwy::Prefetch(panel + 32 * kWidth);
      hwy::Prefetch(panel + 32 * kWidth + 16);
    }
    hn::Vec<Floats> factor[kRows];
    for (int r = 0; r < kRows; ++r) factor[r] = hn::Set(d, x[r * a.row_stride]);
    for (int v = 0; v < kVectors; ++v) {
      const auto weights = hn::Load(d, panel + v * kLanes);
      for (int r = 0; r < kRows; ++r)
        sum[r][v] = hn::MulAdd(factor[r], weights, sum[r][v]);
    }
    x += a.inner_stride;
    panel += kWidth;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v)
      hn::StoreU(sum[r][v], d, c + r * c_stride + v * kLanes);
  }
}

// While at least kRows rows are left, takes them.
template <int kRows>
HWY_INLINE void TakeRows(const LeftOperand& a, int64_t num_rows, int64_t inner,
                         const float* panel, float* c, int64_t c_stride,
                         int64_t& row) {
  if constexpr (kRows <= kMaxRows) {
    for (; num_rows - row >= kRows; row += kRows) {
      MultiplyRows<kRows>(
          {a.data + row * a.row_stride, a.row_stride, a.inner_stride}, inner,
          panel, c + row * c_stride, c_stride);
    }
  }
}

void MultiplyFullPanel(const LeftOperand& a, int64_t num_rows, int64_t inner,
                       const float* panel, float* c, int64_t c_stride) {
  const int64_t block = num_rows > kMaxRows ? kInnerBlock : inner;
  for (int64_t k = 0; k < inner; k += block) {
    const LeftOperand part = {a.data + k * a.inner_stride, a.row_stride,
                              a.inner_stride};
    const int64_t steps = std::min(block, inner - k);
    int64_t row = 0;
    TakeRows<12>(part, num_rows, steps, panel + k * kWidth, c, c_stride, row);
    TakeRows<6>(part, num_rows, steps, panel + k * kWidth, c, c_stride, row);
    TakeRows<3>(part, num_rows, steps, panel + k * kWidth, c, c_stride, row);
    TakeRows<2>(part, num_rows, steps, panel + k * kWidth, c, c_stride, row);
    TakeRows<1>(part, num_rows, steps, panel + k * kWidth, c, c_stride, row);
  }
}

}  // namespace kvmix::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvmix {

HWY_EXPORT(MultiplyFullPanel);

void PanelMatrix::Resize(int64_t inner, int64_t columns) {
  KVMIX_CHECK(inner >= 0 && columns >= 0);
  inner_ = inner;
  columns_ = columns;
  const int64_t size = num_panels() * inner * kWidth;
  data_.Reserve(size);
  std::fill_n(data_.get(), size, 0.0f);
}

int64_t PanelMatrix::width(int64_t p) const {
  return std::min(kWidth, columns_ - p * kWidth);
}

void PanelMatrix::SetColumns(int64_t first, int64_t count, const float* rows,
                             int64_t stride) {
  KVMIX_CHECK(first >= 0 && count >= 0 && first + count <= columns_);
  for (int64_t i = 0; i < count;) {
    const int64_t n = first + i;
    float* to = data_.get() + n / kWidth * inner_ * kWidth + n % kWidth;
    const float* from = rows + i * stride;
    if (n % kWidth == 0 && i + kWidth <= count) {
      int64_t k = 0;
      for (; k + kWidth <= inner_; k += kWidth)
        Transpose32(from + k, stride, to + k * kWidth, kWidth);
      for (; k < inner_; ++k) {
        for (int64_t j = 0; j < kWidth; ++j)
          to[k * kWidth + j] = from[j * stride + k];
      }
      i += kWidth;
    } else {
      for (int64_t k = 0; k < inner_; ++k) to[k * kWidth] = from[k];
      ++i;
    }
  }
}

void PanelMatrix::SetRows(int64_t first, int64_t count, const float* rows,
                          int64_t stride) {
  KVMIX_CHECK(first >= 0 && count >= 0 && first + count <= inner_);
  for (int64_t p = 0; p < num_panels(); ++p) {
    float* to = data_.get() + (p * inner_ + first) * kWidth;
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(to + i * kWidth, rows + i * stride + p * kWidth,
                  width(p) * sizeof(float));
    }
  }
}

void MultiplyPanel(const LeftOperand& a, int64_t num_rows, int64_t inner,
                   const float* panel, int64_t width, float* c,
                   int64_t c_stride) {
  constexpr int64_t kWidth = PanelMatrix::kWidth;
  const auto multiply = HWY_DYNAMIC_DISPATCH(MultiplyFullPanel);
  if (width == kWidth) {
    multiply(a, num_rows, inner, panel, c, c_stride);
    return;
  }
  // The last, partial panel goes through a full tile.
  constexpr int64_t kTileRows = 48;
  float tile[kTileRows * kWidth] = {};
  for (int64_t row = 0; row < num_rows; row += kTileRows) {
    const int64_t rows = std::min(kTileRows, num_rows - row);
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(c + (row + r) * c_stride, width, tile + r * kWidth);
    multiply({a.data + row * a.row_stride, a.row_stride, a.inner_stride}, rows,
             inner, panel, tile, kWidth);
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(tile + r * kWidth, width, c + (row + r) * c_stride);
  }
}

void Transpose32(const float* in, int64_t in_stride, float* out,
                 int64_t out_stride) {
  for (int64_t j = 0; j < PanelMatrix::kWidth; ++j) {
    for (int64_t i = 0; i < PanelMatrix::kWidth; ++i)
      out[j * out_stride + i] = in[i * in_stride + j];
  }
}

}  // namespace kvmix
#endif  // HWY_ONCE
