#include "models/cuda_linear.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

// What cuBLAS asks for on a device of this kind, for its fastest kernels.
int64_t WorkspaceBytes() {
  int major = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  return (major >= 9 ? int64_t{32} : int64_t{4}) << 20;
}

absl::Status CublasStatus(cublasStatus_t status, absl::string_view doing) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  if (status == CUBLAS_STATUS_NOT_INITIALIZED) {
    return absl::FailedPreconditionError(absl::StrCat(
        doing,
        ": cuBLAS did not start; is libcublas.so on the path of shared "
        "libraries (LD_LIBRARY_PATH), and memory left on the device?"));
  }
  return absl::InternalError(
      absl::StrCat(doing, ": cuBLAS gives status ", static_cast<int>(status)));
}

cudaDataType DataType(CudaNumber type) {
  switch (type) {
    case CudaNumber::kHalf:
      return CUDA_R_16F;
    case CudaNumber::kBFloat16:
      return CUDA_R_16BF;
    case CudaNumber::kFloat:
      break;
  }
  return CUDA_R_32F;
}

}  // namespace

absl::StatusOr<CudaLinear> CudaLinear::Create(cudaStream_t stream) {
  CudaLinear linear;
  KVMIX_RETURN_IF_ERROR(
      CublasStatus(cublasCreate(&linear.handle_), "matrix products"));
  KVMIX_RETURN_IF_ERROR(
      CublasStatus(cublasSetStream(linear.handle_, stream), "matrix products"));
  KVMIX_ASSIGN_OR_RETURN(
      linear.workspace_,
      DeviceMemory::Allocate(WorkspaceBytes(), "the workspace of cuBLAS"));
  KVMIX_RETURN_IF_ERROR(CublasStatus(
      cublasSetWorkspace(linear.handle_, linear.workspace_.data(),
                         static_cast<size_t>(linear.workspace_.bytes())),
      "matrix products"));
  return linear;
}

CudaLinear& CudaLinear::operator=(CudaLinear&& other) {
  std::swap(handle_, other.handle_);
  std::swap(workspace_, other.workspace_);
  return *this;
}

CudaLinear::~CudaLinear() {
  if (handle_ != nullptr) cublasDestroy(handle_);
}

absl::Status CudaLinear::Multiply(const Matrix& a, const Matrix& b, int64_t m,
                                  int64_t n, int64_t k, float scale, bool add,
                                  float* out, int64_t out_stride) {
  // To cuBLAS, whose matrices are column-major, ours are their transposes:
  // out^T = b^T a^T.
  const float beta = add ? 1 : 0;
  const auto operation = [](const Matrix& x) {
    return x.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  };
  return CublasStatus(
      cublasGemmEx(handle_, operation(b), operation(a), static_cast<int>(n),
                   static_cast<int>(m), static_cast<int>(k), &scale, b.data,
                   DataType(b.type), static_cast<int>(b.stride), a.data,
                   DataType(a.type), static_cast<int>(a.stride), &beta, out,
                   CUDA_R_32F, static_cast<int>(out_stride), CUBLAS_COMPUTE_32F,
                   CUBLAS_GEMM_DEFAULT),
      "matrix product");
}

absl::Status CudaLinear::Forward(const void* x, const void* weight,
                                 CudaNumber type, int64_t rows, int64_t inputs,
                                 int64_t outputs, bool add, float* out) {
  return Multiply({x, type, inputs}, {weight, type, inputs, true}, rows,
                  outputs, inputs, /*scale=*/1, add, out, outputs);
}

}  // namespace kvmix
