// Memory on the CUDA device, or for copies to and from it, that frees itself,
// and errors of CUDA calls as statuses.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {

// ResourceExhausted for a full device, Internal for all else:
// "upload weights: CUDA says: unspecified launch failure".
absl::Status CudaStatus(cudaError_t error, absl::string_view doing);

// What the driver says is free on the device.
absl::StatusOr<int64_t> FreeDeviceBytes();

// Device memory cut into arrays, one after another, each aligned as cudaMalloc
// aligns; of no memory (nullptr) only the size counts.
class DeviceArena {
 public:
  explicit DeviceArena(void* base) : base_(static_cast<char*>(base)) {}
  template <typename T>
  T* Take(int64_t n) {
    constexpr int64_t kAlignment = 256;
    const int64_t at = (bytes_ + kAlignment - 1) / kAlignment * kAlignment;
    bytes_ = at + n * static_cast<int64_t>(sizeof(T));
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* const base_;
  int64_t bytes_ = 0;
};

class DeviceMemory {
 public:
  DeviceMemory() = default;
  // Error: ResourceExhausted, with the bytes wanted, for what, and those free.
  static absl::StatusOr<DeviceMemory> Allocate(int64_t bytes,
                                               absl::string_view what);
  // Room for what `lay_out` takes of an arena. It is called twice and must take
  // the same: to count, and to place its arrays.
  template <typename LayOut>
  static absl::StatusOr<DeviceMemory> AllocateFor(const LayOut& lay_out,
                                                  absl::string_view what) {
    DeviceArena count(nullptr);
    lay_out(count);
    KVMIX_ASSIGN_OR_RETURN(DeviceMemory memory, Allocate(count.bytes(), what));
    DeviceArena arena(memory.data());
    lay_out(arena);
    return memory;
  }
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

// Page-locked memory of the host: copies to and from the device need not wait.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  PinnedMemory(const PinnedMemory&) = delete;
  ~PinnedMemory() { cudaFreeHost(data_); }

  // Of at least so many bytes; where they move, their contents are lost.
  absl::Status Reserve(int64_t bytes, absl::string_view what);
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace kvmix
