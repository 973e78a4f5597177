// Stand-in for the part of cuBLAS that the project uses: products of
// column-major matrices, in order on the handle's stream. Sums are taken in
// float.
#include <cublas_v2.h>

#include <eigen3/Eigen/Core>

#include "tools/cuda_emulator/emulator.h"
#include "tools/cuda_emulator/internal.h"
#include "tools/cuda_emulator/matrix_product.h"

struct cublasContext {
  cudaStream_t stream = nullptr;
};

namespace {

using Eigen::MatrixXf;
template <typename T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;

// A matrix as cuBLAS is given it: columns `stride` elements apart.
struct View {
  const void* data;
  cudaDataType type;
  int stride;
  cublasOperation_t op = CUBLAS_OP_N;
};

bool Known(cudaDataType type) {
  return type == CUDA_R_32F || type == CUDA_R_16F || type == CUDA_R_16BF;
}

size_t Size(cudaDataType type) { return type == CUDA_R_32F ? 4 : 2; }

template <typename T>
MatrixXf LoadAs(const View& v, int rows, int columns) {
  return Eigen::Map<const Matrix<T>, 0, Eigen::OuterStride<>>(
             static_cast<const T*>(v.data), rows, columns,
             Eigen::OuterStride<>(v.stride))
      .template cast<float>();
}

// op(v), rows x columns. Eigen's half and bfloat16 have the bits of NVIDIA's.
MatrixXf Load(const View& v, int rows, int columns) {
  if (v.op != CUBLAS_OP_N) std::swap(rows, columns);
  const MatrixXf x = v.type == CUDA_R_32F ? LoadAs<float>(v, rows, columns)
                     : v.type == CUDA_R_16F
                         ? LoadAs<Eigen::half>(v, rows, columns)
                         : LoadAs<Eigen::bfloat16>(v, rows, columns);
  if (v.op != CUBLAS_OP_N) return x.transpose();
  return x;
}

template <typename T>
void StoreAs(const MatrixXf& x, void* p, int stride) {
  Eigen::Map<Matrix<T>, 0, Eigen::OuterStride<>>(
      static_cast<T*>(p), x.rows(), x.cols(), Eigen::OuterStride<>(stride)) =
      x.cast<T>();
}

void Store(const MatrixXf& x, void* p, cudaDataType type, int stride) {
  switch (type) {
    case CUDA_R_32F:
      StoreAs<float>(x, p, stride);
      break;
    case CUDA_R_16F:
      StoreAs<Eigen::half>(x, p, stride);
      break;
    default:
      StoreAs<Eigen::bfloat16>(x, p, stride);
  }
  for (int j = 0; j < x.cols(); ++j) {
    emu::MarkWritten(static_cast<char*>(p) + Size(type) * j * stride,
                     Size(type) * x.rows());
  }
}

}  // namespace

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t* h) {
  *h = new cublasContext;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t h) {
  delete h;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream_v2(cublasHandle_t h, cudaStream_t stream) {
  h->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t, void*, size_t) {
  return CUBLAS_STATUS_SUCCESS;
}

// alpha and beta are on the host, and read now.
cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t op_a,
                            cublasOperation_t op_b, int m, int n, int k,
                            const void* alpha, const void* a,
                            cudaDataType type_a, int lda, const void* b,
                            cudaDataType type_b, int ldb, const void* beta,
                            void* c, cudaDataType type_c, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t) {
  if (compute != CUBLAS_COMPUTE_32F || !Known(type_a) || type_a != type_b ||
      !Known(type_c)) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  if (m < 0 || n < 0 || k < 0 || ldc < m ||
      lda < (op_a == CUBLAS_OP_N ? m : k) ||
      ldb < (op_b == CUBLAS_OP_N ? k : n)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const float s = *static_cast<const float*>(alpha);
  const float t = *static_cast<const float*>(beta);
  const View va{a, type_a, lda, op_a}, vb{b, type_b, ldb, op_b};
  emu::Enqueue(h->stream, [=] {
    emu::DeviceMemoryAccessible(true);
    MatrixXf product(m, n);
    emu::MatrixProduct(Load(va, m, k).data(), Load(vb, k, n).data(), m, n, k,
                       product.data());
    if (s != 1) product *= s;
    if (t != 0) product += t * Load({c, type_c, ldc}, m, n);
    Store(product, c, type_c, ldc);
    emu::DeviceMemoryAccessible(false);
  });
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
