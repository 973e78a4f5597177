// The memory of a model's weights: one region of huge pages from which its
// matrices are cut one after the other.
//
// A decode step reads all of it once. On pages of 4 KiB that is bound by their
// translation, and matrices of 1 MiB are too small to have huge pages of their
// own.
#pragma once

#include <cstdint>

namespace kvmix {

class WeightArena {
 public:
  // Reserves addresses for `capacity` bytes; memory is used as it is written.
  explicit WeightArena(int64_t capacity);
  ~WeightArena();
  WeightArena(const WeightArena&) = delete;
  WeightArena& operator=(const WeightArena&) = delete;

  // `bytes` zeros, aligned for vectors. Lives as long as the arena. What Take
  // is asked for in all, each rounded up to kAlignment, must be within the
  // capacity.
  static constexpr int64_t kAlignment = 128;
  uint8_t* Take(int64_t bytes);

 private:
  int64_t mapped_bytes_;
  void* mapped_;
  uint8_t* next_;
  uint8_t* end_;
};

}  // namespace kvmix
