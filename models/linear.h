// Linear layers y = x W^T + b of a loaded model.
//
// Shapes: M rows, K inputs, N outputs; x [M, K], W [N, K], y [M, N], row-major
// float. A row of y depends on its row of x alone, and not on M or the number
// of threads, in every compute type.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kvmix/base/thread_pool.h"
#include "models/matmul.h"
#include "models/weight_arena.h"
#include "models/weight_matrix.h"

namespace kvmix {

class LinearLayer {
 public:
  // W is the rows of several tensors, one below the other.
  struct Part {
    int64_t num_outputs;
    ElementType stored;
  };
  // Weights and bias are to be set. Weights lie in `arena`, or in one of the
  // layer's own.
  LinearLayer(ComputeType compute, int64_t num_inputs,
              const std::vector<Part>& parts,
              std::shared_ptr<WeightArena> arena = nullptr);
  // What `parts` take of an arena's capacity.
  static int64_t ArenaBytes(ComputeType compute, int64_t num_inputs,
                            const std::vector<Part>& parts);

  ComputeType compute() const { return compute_; }
  int64_t num_inputs() const { return num_inputs_; }
  int64_t num_outputs() const { return static_cast<int64_t>(bias_.size()); }
  int64_t bytes() const;

  // See WeightMatrix::SetRows.
  void SetWeightRows(size_t part, int64_t first, int64_t count,
                     const uint8_t* stored, const float* values) {
    parts_[part].matrix.SetRows(first, count, stored, values);
  }
  // Of outputs [first, first + count).
  void SetBias(int64_t first, int64_t count, const float* bias);

  void Forward(const float* x, int64_t num_rows, float* y,
               ThreadPool& threads) const;

  // dx [M, K] = dy [M, N] W, in float: one chain of fused multiply-adds over
  // the outputs.
  void InputGradient(const float* dy, int64_t num_rows, float* dx,
                     ThreadPool& threads) const;

  // Row n of W: the embedding of token n where the output layer is tied to it.
  void CopyWeightRow(int64_t n, float* out) const;

 private:
  struct Placed {
    int64_t first_output;
    WeightMatrix matrix;
  };
  // x as the compute type wants it; memory of the calling thread, kept for its
  // next call.
  struct Inputs {
    const float* floats;
    const BFloat16* bfloats;
    const Int8Block* int8s;
    int64_t stride;  // of the one that is used
  };
  Inputs Prepare(const float* x, int64_t num_rows, ThreadPool& threads) const;
  // y of `part`'s panel p and rows [row, row + num_rows).
  void MultiplyTile(const Placed& part, int64_t p, const Inputs& x, int64_t row,
                    int64_t num_rows, float* y) const;

  const ComputeType compute_;
  const int64_t num_inputs_;
  std::shared_ptr<WeightArena> arena_;
  std::vector<Placed> parts_;
  std::vector<float> bias_;  // [N]
};

}  // namespace kvmix
