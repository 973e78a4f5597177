// Float matrix products C = A B whose every output is one chain of fused
// multiply-adds over the inner dimension, in its order.
//
// So C[m, n] depends on row m of A and column n of B alone: not on the number
// of rows, on how rows and columns are shared among threads, or on how the
// inner dimension is cut into calls. That is why this is not a library's: BLAS
// and oneDNN choose the order of summation by shape and thread count, and then
// a batch, a chunked prefill or another machine's cores would change the bits
// of every result. Instruction sets without FMA round twice.
//
// B lies in panels of 32 columns, [ceil(N / 32)][K][32], so that a product
// streams through it once. Shapes: A [M, K], B [K, N], C [M, N].
#pragma once

#include <cstdint>

#include "models/aligned_buffer.h"

namespace kvmix {

class PanelMatrix {
 public:
  static constexpr int64_t kWidth = 32;

  PanelMatrix() = default;
  // Zero. Memory is kept by a later Resize to a matrix no larger.
  PanelMatrix(int64_t inner, int64_t columns) { Resize(inner, columns); }
  void Resize(int64_t inner, int64_t columns);

  int64_t inner() const { return inner_; }      // K
  int64_t columns() const { return columns_; }  // N
  int64_t num_panels() const { return (columns_ + kWidth - 1) / kWidth; }
  int64_t bytes() const { return num_panels() * inner_ * kWidth * 4; }
  // Columns of panel p that exist: 32, fewer in the last.
  int64_t width(int64_t p) const;
  const float* panel(int64_t p) const {
    return data_.get() + p * inner_ * kWidth;
  }

  // Column first + i = row i of `rows`, [count, K] at the given stride: the
  // layout of a linear layer's weights.
  void SetColumns(int64_t first, int64_t count, const float* rows,
                  int64_t stride);
  // Row first + i of B = row i of `rows`, [count, N] at the given stride.
  void SetRows(int64_t first, int64_t count, const float* rows, int64_t stride);

 private:
  int64_t inner_ = 0;
  int64_t columns_ = 0;
  AlignedBuffer data_;
};

// A(m, k) = data[m * row_stride + k * inner_stride].
struct LeftOperand {
  const float* data;
  int64_t row_stride;
  int64_t inner_stride = 1;
};

// c[m, 0..width) += sum over k of A(m, k) * panel[k][0..width), for m in [0,
// num_rows) and k in [0, inner), in the calling thread. c is read first: set it
// to 0, or to a bias.
void MultiplyPanel(const LeftOperand& a, int64_t num_rows, int64_t inner,
                   const float* panel, int64_t width, float* c,
                   int64_t c_stride);

// out[i][j] = in[j][i] for 32 x 32 floats.
void Transpose32(const float* in, int64_t in_stride, float* out,
                 int64_t out_stride);

}  // namespace kvmix
