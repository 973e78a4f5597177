// LevelTable: numbers by code, and the code of the nearest.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace kvmix {

// 2^bits numbers, by code.
class LevelTable {
 public:
  // NaN and infinities: codes that are never written. Of two codes with the
  // same number the lower is written.
  explicit LevelTable(std::vector<float> values);
  int bits() const { return bits_; }
  float value(uint32_t code) const { return values_[code]; }
  float max() const { return sorted_.back().first; }
  // The code of the number nearest to x; of two that are equally near the even
  // one, which for floats is ties to even. NaN becomes 0, if it is a level.
  uint32_t Nearest(float x) const;

 private:
  int bits_;
  std::vector<float> values_;
  std::vector<std::pair<float, uint32_t>> sorted_;
  std::vector<double> borders_;  // between neighbours of sorted_
};

}  // namespace kvmix
