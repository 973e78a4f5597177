// Linear layers y = x W^T + b of a loaded model.
//
// Shapes: M rows, K inputs, N outputs; x [M, K], W [N, K], y [M, N], row-major
// float.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kvmix/base/thread_pool.h"
#include "models/matmul.h"

namespace kvmix {

enum class ComputeType {
  kFloat32,   // default wherever quality is measured
  kBFloat16,  // linear layers through oneDNN in bf16; refused on a CPU without
              // the instructions
};

class LinearLayer {
 public:
  // Weights and bias are 0. FailedPrecondition if this CPU cannot compute in
  // that type.
  static absl::StatusOr<std::unique_ptr<LinearLayer>> Create(
      ComputeType compute, int64_t num_inputs, int64_t num_outputs);
  virtual ~LinearLayer() = default;

  int64_t num_inputs() const { return num_inputs_; }
  int64_t num_outputs() const { return num_outputs_; }

  // Rows [first, first + count) of W, from [count, K].
  virtual void SetWeightRows(int64_t first, int64_t count,
                             const float* rows) = 0;
  void SetBias(int64_t first, int64_t count, const float* bias);
  // Called once, after the weights are set.
  virtual void Pack() {}

  // Results do not depend on the number of threads; in float32 not on the other
  // rows either.
  virtual void Forward(const float* x, int64_t num_rows, float* y,
                       ThreadPool& threads) const = 0;
  // Row n of W: the embedding of token n where the output layer is tied to it.
  virtual void CopyWeightRow(int64_t n, float* out) const = 0;
  virtual int64_t bytes() const = 0;

  // W^T in float32, for gradients; null in other types.
  virtual const PanelMatrix* matrix() const { return nullptr; }

 protected:
  LinearLayer(int64_t num_inputs, int64_t num_outputs)
      : num_inputs_(num_inputs),
        num_outputs_(num_outputs),
        bias_(num_outputs) {}

  const int64_t num_inputs_;
  const int64_t num_outputs_;
  std::vector<float> bias_;
};

// y = x B, with x at row stride B.inner() and y at B.columns(). bias [N] or
// null.
void MultiplyRows(const float* x, int64_t num_rows, const PanelMatrix& b,
                  const float* bias, float* y, ThreadPool& threads);

// dx [M, K] = dy [M, N] W for a linear layer's matrix W^T: the gradient of its
// input.
void MultiplyTransposed(const float* dy, int64_t num_rows,
                        const PanelMatrix& matrix, float* dx,
                        ThreadPool& threads);

// Says what is missing if this CPU cannot compute in bf16. linear_bf16.cc.
absl::Status BFloat16IsSupported();
std::unique_ptr<LinearLayer> MakeBFloat16Linear(int64_t num_inputs,
                                                int64_t num_outputs);

}  // namespace kvmix
