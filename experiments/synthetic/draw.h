// Draws that the synthetic text is made with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "kvmix/base/random.h"

namespace kvmix::synthetic {

// Uniform in [low, high].
inline int UniformInt(CounterRandom& random, int low, int high) {
  return low +
         static_cast<int>(random.Below(static_cast<uint64_t>(high - low + 1)));
}

template <typename T>
const T& Pick(CounterRandom& random, const std::vector<T>& from) {
  return from[random.Below(from.size())];
}

// An index with probability proportional to its weight.
inline size_t PickWeighted(CounterRandom& random,
                           absl::Span<const double> weights) {
  double total = 0;
  for (double weight : weights) total += weight;
  double left = random.Uniform() * total;
  for (size_t i = 0; i + 1 < weights.size(); ++i) {
    left -= weights[i];
    if (left < 0) return i;
  }
  return weights.size() - 1;
}

template <typename T>
void Shuffle(CounterRandom& random, std::vector<T>& items) {
  for (size_t i = items.size(); i > 1; --i)
    std::swap(items[i - 1], items[random.Below(i)]);
}

}  // namespace kvmix::synthetic
