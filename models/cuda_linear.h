// Products with a model's matrices by cuBLAS. Sums are taken in float; tf32 is
// never used.
#pragma once

#include <cublas_v2.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/cuda_attention_params.h"
#include "kvmix/base/device_memory.h"

namespace kvmix {

class CudaLinear {
 public:
  // Every product runs on `stream`, with a workspace of its own, so that it can
  // be captured into a graph.
  static absl::StatusOr<CudaLinear> Create(cudaStream_t stream);
  CudaLinear(CudaLinear&& other) { *this = std::move(other); }
  CudaLinear& operator=(CudaLinear&& other);
  ~CudaLinear();

  // A matrix in rows `stride` numbers apart.
  struct Matrix {
    const void* data = nullptr;
    CudaNumber type = CudaNumber::kFloat;
    int64_t stride = 0;
    bool transposed = false;  // the product takes its transpose
  };
  // out [m, n] = scale a [m, k] b [k, n], added to what `out` holds if `add`;
  // rows of out are out_stride numbers apart. a and b are of one type.
  absl::Status Multiply(const Matrix& a, const Matrix& b, int64_t m, int64_t n,
                        int64_t k, float scale, bool add, float* out,
                        int64_t out_stride);

  // out [rows, outputs] = x [rows, inputs] weight [outputs, inputs]^T, added to
  // what `out` holds if `add`. x and weight are numbers of `type`; all are
  // row-major without gaps.
  absl::Status Forward(const void* x, const void* weight, CudaNumber type,
                       int64_t rows, int64_t inputs, int64_t outputs, bool add,
                       float* out);

  int64_t workspace_bytes() const { return workspace_.bytes(); }

 private:
  CudaLinear() = default;
  cublasHandle_t handle_ = nullptr;
  DeviceMemory workspace_;
};

}  // namespace kvmix
