#include "quant/level_table.h"

#include <algorithm>
#include <cmath>

#include "kvmix/base/check.h"

namespace kvmix {

LevelTable::LevelTable(std::vector<float> values)
    : bits_(0), values_(std::move(values)) {
  while ((size_t{1} << bits_) < values_.size()) ++bits_;
  KVMIX_CHECK(bits_ >= 1 && values_.size() == size_t{1} << bits_);
  for (uint32_t code = 0; code < values_.size(); ++code)
    if (std::isfinite(values_[code])) sorted_.push_back({values_[code], code});
  std::sort(sorted_.begin(), sorted_.end());
  const auto same = [](const auto& a, const auto& b) {
    return a.first == b.first;
  };
  sorted_.erase(std::unique(sorted_.begin(), sorted_.end(), same),
                sorted_.end());
  for (size_t i = 0; i + 1 < sorted_.size(); ++i)
    borders_.push_back(
        (static_cast<double>(sorted_[i].first) + sorted_[i + 1].first) / 2);
}

uint32_t LevelTable::Nearest(float x) const {
  const double target = std::isnan(x) ? 0.0 : x;
  const auto border =
      std::lower_bound(borders_.begin(), borders_.end(), target);
  const size_t below = border - borders_.begin();
  const bool tie = border != borders_.end() && *border == target;
  if (tie && sorted_[below].second % 2 != 0) return sorted_[below + 1].second;
  return sorted_[below].second;
}

}  // namespace kvmix
