// The rule of a window that slides: tokens beyond its size leave, oldest first,
// as many as the format takes together.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kvmix/recency/recency_policy.h"

namespace kvmix {

inline int64_t TokensBeyondWindow(const WindowState& state, int64_t tokens) {
  const int64_t excess = std::max<int64_t>(0, state.window_tokens - tokens);
  return excess - excess % state.granularity;
}

}  // namespace kvmix
