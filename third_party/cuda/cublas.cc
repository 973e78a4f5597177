// The functions of cuBLAS that the project uses, found when they are first
// called: a program starts, and runs on the CPU, where there is no cuBLAS.
// CUBLAS_STATUS_NOT_INITIALIZED says that the library was not found.
#include <cublas_v2.h>
#include <dlfcn.h>

namespace {

void* Library() {
  static void* const library = [] {
    void* found = nullptr;
    for (const char* name :
         {"libcublas.so.13", "libcublas.so.12", "libcublas.so",
          "/usr/local/cuda/lib64/libcublas.so"}) {
      found = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (found != nullptr) break;
    }
    return found;
  }();
  return library;
}

// Calls the library's function `name`; the arguments have its very types.
template <typename... A>
cublasStatus_t Call(const char* name, A... arguments) {
  if (Library() == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  const auto function =
      reinterpret_cast<cublasStatus_t (*)(A...)>(dlsym(Library(), name));
  if (function == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  return function(arguments...);
}

}  // namespace

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) {
  return Call("cublasCreate_v2", handle);
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
  return Call("cublasDestroy_v2", handle);
}

cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
  return Call("cublasSetStream_v2", handle, stream);
}

cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle, void* workspace,
                                     size_t bytes) {
  return Call("cublasSetWorkspace_v2", handle, workspace, bytes);
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a,
                            cublasOperation_t op_b, int m, int n, int k,
                            const void* alpha, const void* a,
                            cudaDataType type_a, int lda, const void* b,
                            cudaDataType type_b, int ldb, const void* beta,
                            void* c, cudaDataType type_c, int ldc,
                            cublasComputeType_t compute,
                            cublasGemmAlgo_t algorithm) {
  return Call("cublasGemmEx", handle, op_a, op_b, m, n, k, alpha, a, type_a,
              lda, b, type_b, ldb, beta, c, type_c, ldc, compute, algorithm);
}

}  // extern "C"
