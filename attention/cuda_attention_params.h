// What the kernels of the device KV cache take: raw pointers, sizes, strides.
// Host and device; no Abseil, no Protobuf.
#pragma once

#include <cstdint>

namespace kvmix {

enum class CudaNumber : int { kFloat, kHalf, kBFloat16 };

// Rows of numbers in device memory, one a token, `stride` numbers apart; a
// row's own numbers lie side by side and, like the stride, on 16 bytes.
struct CudaRows {
  const void* data = nullptr;
  CudaNumber type = CudaNumber::kFloat;
  int64_t stride = 0;
};
struct CudaMutableRows {
  void* data = nullptr;
  CudaNumber type = CudaNumber::kFloat;
  int64_t stride = 0;
};

}  // namespace kvmix
