// The stand-in for cuBLAS against plain loops.
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/device_vector.h"

namespace kvmix {
namespace {

template <typename T>
constexpr cudaDataType kType = std::is_same_v<T, float>    ? CUDA_R_32F
                               : std::is_same_v<T, __half> ? CUDA_R_16F
                                                           : CUDA_R_16BF;

template <typename T>
class CublasTest : public testing::Test {};
using Types = testing::Types<float, __half, __nv_bfloat16>;
TYPED_TEST_SUITE(CublasTest, Types);

// c [m, n] = 2 a b + 3 c, of every transposition.
template <typename T>
void ExpectGemm(int m, int n, int k) {
  const int lda = std::max(m, k) + 2, ldb = std::max(n, k) + 3, ldc = m + 2;
  std::vector<T> a(lda * lda), b(ldb * ldb);
  for (size_t i = 0; i < a.size(); ++i) a[i] = T(std::sin(i * 1.7f));
  for (size_t i = 0; i < b.size(); ++i) b[i] = T(std::cos(i * 0.9f));
  DeviceVector<T> da(a), db(b);
  cublasHandle_t handle;
  ASSERT_EQ(cublasCreate(&handle), CUBLAS_STATUS_SUCCESS);
  for (cublasOperation_t op_a : {CUBLAS_OP_N, CUBLAS_OP_T}) {
    for (cublasOperation_t op_b : {CUBLAS_OP_N, CUBLAS_OP_T}) {
      DeviceVector<T> dc(std::vector<T>(ldc * n, T(1.0f)));
      const float alpha = 2, beta = 3;
      ASSERT_EQ(
          cublasGemmEx(handle, op_a, op_b, m, n, k, &alpha, da.data(), kType<T>,
                       lda, db.data(), kType<T>, ldb, &beta, dc.data(),
                       kType<T>, ldc, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          CUBLAS_STATUS_SUCCESS);
      const std::vector<T> c = dc.ToHost();
      const double epsilon = std::is_same_v<T, float>    ? 1e-6
                             : std::is_same_v<T, __half> ? 0.0005
                                                         : 0.004;
      for (int i = 0; i < ldc; ++i) {
        for (int j = 0; j < n; ++j) {
          double sum = 0;
          for (int q = 0; q < k && i < m; ++q) {
            sum += static_cast<double>(static_cast<float>(
                       op_a ? a[i * lda + q] : a[q * lda + i])) *
                   static_cast<float>(op_b ? b[q * ldb + j] : b[j * ldb + q]);
          }
          const double want = i < m ? 2 * sum + 3 : 1;  // rows between: kept
          EXPECT_NEAR(static_cast<float>(c[j * ldc + i]), want,
                      epsilon * (4 + std::abs(want)));
        }
      }
    }
  }
  cublasDestroy(handle);
}

TYPED_TEST(CublasTest, GemmOfEveryTransposition) {
  ExpectGemm<TypeParam>(7, 5, 11);
  ExpectGemm<TypeParam>(35, 9, 40);
}

TEST(CublasErrorsTest, ShapesAndTypesThatDoNotFitAreRefused) {
  DeviceVector<float> d(64);
  cublasHandle_t handle;
  ASSERT_EQ(cublasCreate(&handle), CUBLAS_STATUS_SUCCESS);
  const float one = 1;
  const auto gemm = [&](int lda, cudaDataType type_b) {
    return cublasGemmEx(handle, CUBLAS_OP_N, CUBLAS_OP_N, 4, 4, 4, &one,
                        d.data(), CUDA_R_32F, lda, d.data(), type_b, 4, &one,
                        d.data(), CUDA_R_32F, 4, CUBLAS_COMPUTE_32F,
                        CUBLAS_GEMM_DEFAULT);
  };
  EXPECT_EQ(gemm(3, CUDA_R_32F), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(gemm(4, CUDA_R_16F), CUBLAS_STATUS_NOT_SUPPORTED);
  cublasDestroy(handle);
}

}  // namespace
}  // namespace kvmix
