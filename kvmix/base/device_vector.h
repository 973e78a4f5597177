// Arrays on the device for tests: a failed call fails the test.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace kvmix {

template <typename T>
class DeviceVector {
 public:
  explicit DeviceVector(size_t n) : size_(n) {
    void* p = nullptr;
    EXPECT_EQ(cudaMalloc(&p, n * sizeof(T)), cudaSuccess);
    data_ = static_cast<T*>(p);
  }
  explicit DeviceVector(const std::vector<T>& v) : DeviceVector(v.size()) {
    EXPECT_EQ(
        cudaMemcpy(data_, v.data(), size_ * sizeof(T), cudaMemcpyHostToDevice),
        cudaSuccess);
  }
  DeviceVector(DeviceVector&& other)
      : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
  DeviceVector& operator=(DeviceVector&&) = delete;
  ~DeviceVector() { cudaFree(data_); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return size_; }

  // Waits for the device.
  std::vector<T> ToHost() const {
    std::vector<T> v(size_);
    EXPECT_EQ(
        cudaMemcpy(v.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost),
        cudaSuccess);
    return v;
  }

 private:
  T* data_;
  size_t size_;
};

}  // namespace kvmix
