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

  // out [rows, outputs] = x [rows, inputs] weight [outputs, inputs]^T, added to
  // what `out` holds if `add`. x and weight are numbers of `type`; all are
  // row-major without gaps.
  absl::Status Forward(const void* x, const void* weight, CudaNumber type,
                       int64_t rows, int64_t inputs, int64_t outputs, bool add,
                       float* out);

 private:
  CudaLinear() = default;
  cublasHandle_t handle_ = nullptr;
  DeviceMemory workspace_;
};

}  // namespace kvmix
