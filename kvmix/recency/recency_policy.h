// RecencyPolicy: which of the newest tokens stay in full precision, and when
// older ones are quantized.
//
// The cache keeps, for each layer and for K and V each, [sink tokens | packed
// blocks | window]. After every append it asks the policy how many of the
// window's oldest tokens to quantize. A policy only counts; it never sees a
// number of the cache.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "quant/quantizer.h"

namespace kvmix {

// When a decode step (a chunk of one token) quantizes: KVmix before it attends,
// KIVI after. A longer chunk always attends first: no query may see scales that
// were made of later tokens.
enum class FlushOrder { kBeforeAttention, kAfterAttention };

struct WindowState {
  Side side = Side::kKey;
  int bits = 0;         // nominal bits of the format that tokens leave into
  int granularity = 1;  // tokens leave in multiples of this
  int64_t window_tokens =
      0;  // in full precision now, the appended ones included, sinks not
  int64_t packed_tokens = 0;  // quantized before and still in the cache
};

// Tokens between the window and the plan's own format.
struct AgeTier {
  QuantFormat format;
  int64_t tokens = 0;  // that are stored so
};

class RecencyPolicy {
 public:
  virtual ~RecencyPolicy() = default;
  virtual FlushOrder flush_order() const = 0;
  // The first tokens of a sequence that are never quantized.
  virtual int64_t sink_tokens() const { return 0; }
  // Formats that tokens pass through before that of the plan, the first one
  // first. Errors: a format that head_dim does not allow.
  virtual absl::StatusOr<std::vector<AgeTier>> Tiers(Side,
                                                     int /*head_dim*/) const {
    return std::vector<AgeTier>();
  }
  // Checks that the policy can serve a stream of this format: called once per
  // layer and side.
  virtual absl::Status Validate(const WindowState& stream) const = 0;
  // A multiple of granularity, at most window_tokens.
  virtual int64_t TokensToQuantize(const WindowState& state) const = 0;
};

}  // namespace kvmix
