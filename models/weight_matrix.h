// The weights W [N, K] of a linear layer, kept as they are stored.
//
// Outputs lie in panels of 32 and inputs in blocks of 32, as drawn in
// weight_kernels.h. What a model file has becomes:
//
// stored        kFloat32, kBFloat16    kInt8            bytes a weight
// F32           float; bf16            8-bit codes      4; 2; 1.06
// F16           half; bf16             8-bit codes      2; 2; 1.06
// BF16          bf16                   8-bit codes      2; 2; 1.06
// Q4_0          the stored codes and scales             0.56
// Q4_1          the stored codes, scales and minima     0.63
// Q8_0, Q5_0    the stored codes and scales, 8 bits     1.06
// Q5_1          codes of 8 bits, scales, minima         1.13
// Q4_K          codes, products of scales in float      0.75
// Q5_K, Q6_K    codes of 8 bits, products of scales     1.25
//
// Where codes are kept nothing is lost: decoded, they are the floats that
// ggml_blocks.h gives. "8-bit codes" of a float type are those of Q8_0: for 32
// inputs d = max |w| / 127 rounded to half, and round(w / d).
#pragma once

#include <cstdint>

#include "absl/strings/string_view.h"
#include "models/ggml_blocks.h"
#include "models/weight_arena.h"
#include "models/weight_kernels.h"

namespace kvmix {

enum class ComputeType {
  kFloat32,   // default wherever quality is measured
  kBFloat16,  // weights and inputs rounded to bf16, sums in float
  kInt8,      // inputs rounded to 8 bits for each 32, products exact, sums of
              // them in float; weights as stored, or of float types rounded to
              // 8 bits
};

// As configurations name it: "FLOAT32", "BFLOAT16", "INT8".
absl::string_view ComputeTypeName(ComputeType compute);

class WeightMatrix {
 public:
  // Bytes that a matrix takes from its arena.
  static int64_t BytesFor(ComputeType compute, ElementType stored,
                          int64_t num_inputs, int64_t num_outputs);

  // All bytes are 0. num_inputs is a multiple of the stored type's block. The
  // arena outlives the matrix.
  WeightMatrix(ComputeType compute, ElementType stored, int64_t num_inputs,
               int64_t num_outputs, WeightArena& arena);

  WeightLayout layout() const { return layout_; }
  int64_t num_inputs() const { return num_inputs_; }    // K
  int64_t num_outputs() const { return num_outputs_; }  // N
  int64_t num_blocks() const {
    return (num_inputs_ + kBlockInputs - 1) / kBlockInputs;
  }
  int64_t num_panels() const {
    return (num_outputs_ + kPanelOutputs - 1) / kPanelOutputs;
  }
  int64_t panel_bytes() const {
    return num_blocks() * WeightBlockBytes(layout_);
  }
  int64_t bytes() const { return num_panels() * panel_bytes(); }
  const uint8_t* panel(int64_t p) const { return data_ + p * panel_bytes(); }
  // Outputs of panel p that exist: 32, fewer in the last.
  int64_t width(int64_t p) const;

  // Rows [first, first + count): blocks of the stored type, and the same as
  // float. Threads may set the rows of different panels at a time.
  void SetRows(int64_t first, int64_t count, const uint8_t* stored,
               const float* values);

  // out [num_inputs]: row n as float.
  void CopyRow(int64_t n, float* out) const;

 private:
  uint8_t* block(int64_t n, int64_t b) {
    return data_ + n / kPanelOutputs * panel_bytes() +
           b * WeightBlockBytes(layout_);
  }
  void SetFloatRow(int64_t n, const float* values);
  void SetCodeBlock(int64_t n, int64_t b, const CodeBlock& codes);

  const ElementType stored_;
  const WeightLayout layout_;
  const int64_t num_inputs_;
  const int64_t num_outputs_;
  uint8_t* const data_;
};

}  // namespace kvmix
