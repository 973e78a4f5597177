#include "models/linear.h"

#include <algorithm>

#include "kvmix/base/check.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

constexpr int64_t kWidth = PanelMatrix::kWidth;

// Rows that share a panel's pass through the caches: 192 rows of 192 inputs are
// 144 KiB.
constexpr int64_t kRowTile = 192;

class Float32Linear final : public LinearLayer {
 public:
  Float32Linear(int64_t num_inputs, int64_t num_outputs)
      : LinearLayer(num_inputs, num_outputs),
        matrix_(num_inputs, num_outputs) {}

  void SetWeightRows(int64_t first, int64_t count, const float* rows) override {
    matrix_.SetColumns(first, count, rows, num_inputs_);
  }
  void Forward(const float* x, int64_t num_rows, float* y,
               ThreadPool& threads) const override {
    MultiplyRows(x, num_rows, matrix_, bias_.data(), y, threads);
  }
  void CopyWeightRow(int64_t n, float* out) const override {
    matrix_.CopyColumn(n, out);
  }
  int64_t bytes() const override {
    return matrix_.bytes() + num_outputs_ * static_cast<int64_t>(sizeof(float));
  }
  const PanelMatrix* matrix() const override { return &matrix_; }

 private:
  PanelMatrix matrix_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<LinearLayer>> LinearLayer::Create(
    ComputeType compute, int64_t num_inputs, int64_t num_outputs) {
  if (compute == ComputeType::kBFloat16) {
    KVMIX_RETURN_IF_ERROR(BFloat16IsSupported());
    return MakeBFloat16Linear(num_inputs, num_outputs);
  }
  return std::make_unique<Float32Linear>(num_inputs, num_outputs);
}

void LinearLayer::SetBias(int64_t first, int64_t count, const float* bias) {
  KVMIX_CHECK(first >= 0 && first + count <= num_outputs_);
  std::copy_n(bias, count, bias_.begin() + first);
}

void MultiplyRows(const float* x, int64_t num_rows, const PanelMatrix& b,
                  const float* bias, float* y, ThreadPool& threads) {
  // A task is a run of panels times a tile of rows: 256 KiB of weights when
  // rows are few, so that waking a thread pays.
  const int64_t panel_bytes =
      std::max<int64_t>(1, b.inner() * kWidth * sizeof(float));
  const int64_t panels_per_task =
      num_rows >= 16 ? 1
                     : std::clamp<int64_t>((int64_t{1} << 18) / panel_bytes, 1,
                                           b.num_panels());
  const int64_t column_tasks =
      (b.num_panels() + panels_per_task - 1) / panels_per_task;
  const int64_t row_tiles = (num_rows + kRowTile - 1) / kRowTile;
  threads.ParallelFor(column_tasks * row_tiles, [&](int64_t task, int) {
    const int64_t row = task / column_tasks * kRowTile;
    const int64_t rows = std::min(kRowTile, num_rows - row);
    const int64_t first = task % column_tasks * panels_per_task;
    const int64_t last = std::min(first + panels_per_task, b.num_panels());
    for (int64_t p = first; p < last; ++p) {
      const int64_t width = b.width(p);
      float* c = y + row * b.columns() + p * kWidth;
      for (int64_t r = 0; r < rows; ++r) {
        if (bias != nullptr) {
          std::copy_n(bias + p * kWidth, width, c + r * b.columns());
        } else {
          std::fill_n(c + r * b.columns(), width, 0.0f);
        }
      }
      MultiplyPanel({x + row * b.inner(), b.inner()}, rows, b.inner(),
                    b.panel(p), width, c, b.columns());
    }
  });
}

void MultiplyTransposed(const float* dy, int64_t num_rows,
                        const PanelMatrix& matrix, float* dx,
                        ThreadPool& threads) {
  // Task t owns inputs [32 t, 32 t + 32) of all rows. Its part of W is brought
  // into panel order in blocks of 6 panels: [192 outputs][32 inputs], 24 KiB.
  constexpr int64_t kPanelsPerBlock = 6;
  const int64_t inputs = matrix.inner();
  const int64_t outputs = matrix.columns();
  threads.ParallelFor((inputs + kWidth - 1) / kWidth, [&](int64_t task, int) {
    const int64_t first = task * kWidth;
    const int64_t width = std::min(kWidth, inputs - first);
    alignas(128) float block[kPanelsPerBlock * kWidth * kWidth] = {};
    for (int64_t m = 0; m < num_rows; ++m)
      std::fill_n(dx + m * inputs + first, width, 0.0f);
    for (int64_t p = 0; p < matrix.num_panels(); p += kPanelsPerBlock) {
      const int64_t end = std::min(p + kPanelsPerBlock, matrix.num_panels());
      for (int64_t q = p; q < end; ++q) {
        const float* from = matrix.panel(q) + first * kWidth;
        float* to = block + (q - p) * kWidth * kWidth;
        for (int64_t k = 0; k < width; ++k) {
          for (int64_t n = 0; n < kWidth; ++n)
            to[n * kWidth + k] = from[k * kWidth + n];
        }
      }
      const int64_t steps = std::min(end * kWidth, outputs) - p * kWidth;
      MultiplyPanel({dy + p * kWidth, outputs}, num_rows, steps, block, width,
                    dx + first, inputs);
    }
  });
}

}  // namespace kvmix
