// WindowTrace: what a recency policy leaves in the window, for tests.
#pragma once

#include <cstdint>
#include <vector>

#include "kvmix/recency/recency_policy.h"

namespace kvmix {

// Tokens in the window after a prefill of prompt_tokens and after each of
// num_steps decode steps. `stream` gives side, bits and granularity.
inline std::vector<int64_t> WindowTrace(const RecencyPolicy& policy,
                                        WindowState stream,
                                        int64_t prompt_tokens, int num_steps) {
  std::vector<int64_t> trace;
  stream.window_tokens = prompt_tokens;
  for (int step = 0; step <= num_steps; ++step) {
    if (step > 0) ++stream.window_tokens;
    stream.window_tokens -= policy.TokensToQuantize(stream);
    trace.push_back(stream.window_tokens);
  }
  return trace;
}

}  // namespace kvmix
