// Floats aligned for vector loads; large buffers ask for huge pages, which a
// matrix-vector product's speed depends on.
#pragma once

#include <cstdint>
#include <memory>

namespace kvmix {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(int64_t size) { Reserve(size); }

  // Room for `size` floats of any value; what was there is lost if it grows.
  void Reserve(int64_t size);

  float* get() { return data_.get(); }
  const float* get() const { return data_.get(); }
  int64_t capacity() const { return capacity_; }

 private:
  struct Free {
    void operator()(float* p) const;
  };
  std::unique_ptr<float, Free> data_;
  int64_t capacity_ = 0;
};

}  // namespace kvmix
