#include "kvmix/key_rotation.h"

#include <algorithm>
#include <mutex>
#include <utility>

namespace kvmix {

KeyRotation::KeyRotation(int head_dim, Angles angles)
    : half_(head_dim / 2), angles_(std::move(angles)) {}

KeyRotation::Page KeyRotation::NewPage(int64_t index) const {
  auto page = std::make_unique<float[]>(2 * half_ * kPageTokens);
  std::vector<float> cos(half_), sin(half_);
  for (int64_t t = 0; t < kPageTokens; ++t) {
    angles_(index * kPageTokens + t, cos.data(), sin.data());
    for (int i = 0; i < half_; ++i) {
      page[i * kPageTokens + t] = cos[i];
      page[(half_ + i) * kPageTokens + t] = sin[i];
    }
  }
  return page;
}

const float* KeyRotation::PageAt(int64_t index) const {
  {
    std::shared_lock lock(mutex_);
    if (index < static_cast<int64_t>(pages_.size()) && pages_[index] != nullptr)
      return pages_[index].get();
  }
  std::unique_lock lock(mutex_);
  if (index >= static_cast<int64_t>(pages_.size())) pages_.resize(index + 1);
  if (pages_[index] == nullptr) pages_[index] = NewPage(index);
  return pages_[index].get();
}

template <typename Turn>
void KeyRotation::ForEachPair(int64_t first, int64_t count, float* x,
                              int64_t stride, const Turn& turn) const {
  while (count > 0) {
    const int64_t in_page = first % kPageTokens;
    const int64_t n = std::min(count, kPageTokens - in_page);
    const float* cos = PageAt(first / kPageTokens) + in_page;
    const float* sin = cos + half_ * kPageTokens;
    for (int64_t i = 0; i < half_; ++i)
      turn(cos + i * kPageTokens, sin + i * kPageTokens, n, x + i * stride,
           x + (i + half_) * stride);
    first += n;
    count -= n;
    x += n;
  }
}

void KeyRotation::Rotate(int64_t first, int64_t count, float* x,
                         int64_t stride) const {
  ForEachPair(
      first, count, x, stride,
      [](const float* cos, const float* sin, int64_t n, float* a, float* b) {
        for (int64_t t = 0; t < n; ++t) {
          const float x0 = a[t], x1 = b[t];
          a[t] = cos[t] * x0 - sin[t] * x1;
          b[t] = cos[t] * x1 + sin[t] * x0;
        }
      });
}

void KeyRotation::Unrotate(int64_t first, int64_t count, float* x,
                           int64_t stride) const {
  ForEachPair(
      first, count, x, stride,
      [](const float* cos, const float* sin, int64_t n, float* a, float* b) {
        for (int64_t t = 0; t < n; ++t) {
          const float inverse = 1 / (cos[t] * cos[t] + sin[t] * sin[t]);
          const float y0 = a[t], y1 = b[t];
          a[t] = (cos[t] * y0 + sin[t] * y1) * inverse;
          b[t] = (cos[t] * y1 - sin[t] * y0) * inverse;
        }
      });
}

}  // namespace kvmix
