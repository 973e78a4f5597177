// Memory on the CUDA device that frees itself, and errors of CUDA calls as
// statuses.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvmix {

// ResourceExhausted for a full device, Internal for all else:
// "upload weights: CUDA says: unspecified launch failure".
absl::Status CudaStatus(cudaError_t error, absl::string_view doing);

class DeviceMemory {
 public:
  DeviceMemory() = default;
  // Error: ResourceExhausted, with the bytes wanted, for what, and those free.
  static absl::StatusOr<DeviceMemory> Allocate(int64_t bytes,
                                               absl::string_view what);
  DeviceMemory(DeviceMemory&& other) { *this = std::move(other); }
  DeviceMemory& operator=(DeviceMemory&& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceMemory() { cudaFree(data_); }

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

  // Copies to the device before it returns. Precondition: offset + bytes <=
  // this->bytes().
  absl::Status Upload(const void* from, int64_t bytes, int64_t offset = 0);

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace kvmix
