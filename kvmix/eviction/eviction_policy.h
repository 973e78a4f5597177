// EvictionPolicy: which tokens leave the cache for good, or are demoted to
// fewer bits.
//
// After every chunk, before anything is quantized, the cache asks the policy
// about one layer, whose KV heads may keep different tokens and different
// numbers of them. A token's key and value go together, and what it took is
// released. Keys carry their RoPE, so the tokens that stay keep their
// positions.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "quant/quantizer.h"

namespace kvmix {

// Signals of the running model that a policy wants; the cache records just
// these.
struct EvictionSignals {
  bool keys = false;
  bool values = false;
  // Attention that each token has received from all queries since it came.
  bool received = false;
  // Scores of the newest queries, as many tokens of them.
  int64_t query_window = 0;
};

// One KV head of a layer. N = tokens in the cache, sinks and demoted ones
// first; D = head_dim.
struct EvictionHead {
  int64_t num_tokens = 0;  // N
  // Tokens before this one may not leave: the recency policy's sinks, and those
  // demoted before.
  int64_t first_candidate = 0;
  int64_t demoted = 0;                 // of these, the demoted ones
  const int64_t* positions = nullptr;  // [N], in the text; unique
  // If asked for, as the cache holds them, quantized ones decoded.
  const float* keys = nullptr;    // [N, D]
  const float* values = nullptr;  // [N, D]
  // [N], sum over queries, mean over the query heads of this KV head.
  const float* received = nullptr;
  // [score_rows, N] scaled products of queries and keys, before the softmax;
  // -infinity where a query cannot see the token. A row is one query head of
  // one of the newest queries: row i * query_heads + j.
  const float* scores = nullptr;
  int64_t score_rows = 0;
  int query_heads = 1;  // of this KV head
};

struct EvictionState {
  int layer = 0;
  int num_layers = 1;
  int head_dim = 0;
  int64_t tokens_seen = 0;  // appended to the layer since the text began
  // The number of tokens that leave a head must be a multiple of this.
  int64_t multiple = 1;
  std::vector<EvictionHead> heads;  // [G]
};

// Of one head: ascending indices, in [first_candidate, num_tokens).
using TokenList = std::vector<int64_t>;

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  // False: never asks for anything and keeps all tokens.
  virtual bool evicts() const { return true; }
  virtual EvictionSignals signals() const { return {}; }
  // The format that tokens are demoted to instead of being dropped; bits 0:
  // they are dropped.
  virtual absl::StatusOr<QuantFormat> DemotionFormat(Side,
                                                     int /*head_dim*/) const {
    return QuantFormat();
  }
  // Whether TokensToDrop would name any. `state` has counts and positions
  // alone.
  virtual bool WouldDrop(const EvictionState& state) const = 0;
  // Of each head. `state` has all signals.
  virtual std::vector<TokenList> TokensToDrop(
      const EvictionState& state) const = 0;
};

}  // namespace kvmix
