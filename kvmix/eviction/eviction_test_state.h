// A layer as an eviction policy is shown it, with random signals. testonly.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kvmix/base/random.h"
#include "kvmix/eviction/eviction_policy.h"

namespace kvmix::testing {

// Owns what EvictionState points at.
class RandomLayer {
 public:
  struct Shape {
    int num_heads = 2;
    int query_heads = 3;  // of a KV head
    int head_dim = 8;
    int64_t num_tokens = 100;  // of each head; older ones have been dropped
    int64_t tokens_seen = 130;
    int64_t sinks = 0, demoted = 0;
    int64_t queries = 16;
    int64_t multiple = 1;
    int layer = 0, num_layers = 4;
  };

  RandomLayer(const Shape& shape, uint64_t seed) {
    CounterRandom random(seed, 0);
    const auto normals = [&](int64_t n) {
      std::vector<float> x(n);
      for (float& v : x) v = static_cast<float>(random.Normal());
      return x;
    };
    state_ = {.layer = shape.layer,
              .num_layers = shape.num_layers,
              .head_dim = shape.head_dim,
              .tokens_seen = shape.tokens_seen,
              .multiple = shape.multiple,
              .heads = {}};
    heads_.resize(shape.num_heads);
    for (Head& head : heads_) {
      // The newest tokens of each head are all there.
      const int64_t dropped = shape.tokens_seen - shape.num_tokens;
      for (int64_t t = 0; t < shape.num_tokens; ++t)
        head.positions.push_back(t < shape.num_tokens / 2 ? t : t + dropped);
      head.keys = normals(shape.num_tokens * shape.head_dim);
      head.values = normals(shape.num_tokens * shape.head_dim);
      head.received = normals(shape.num_tokens);
      for (float& r : head.received) r = std::fabs(r);
      const int64_t rows = shape.queries * shape.query_heads;
      head.scores = normals(rows * shape.num_tokens);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t t = 0; t < shape.num_tokens; ++t)
          if (head.positions[t] >
              shape.tokens_seen - shape.queries + r / shape.query_heads)
            head.scores[r * shape.num_tokens + t] =
                -std::numeric_limits<float>::infinity();
      state_.heads.push_back({.num_tokens = shape.num_tokens,
                              .first_candidate = shape.sinks + shape.demoted,
                              .demoted = shape.demoted,
                              .positions = head.positions.data(),
                              .keys = head.keys.data(),
                              .values = head.values.data(),
                              .received = head.received.data(),
                              .scores = head.scores.data(),
                              .score_rows = rows,
                              .query_heads = shape.query_heads});
    }
  }
  const EvictionState& state() const { return state_; }

 private:
  struct Head {
    std::vector<int64_t> positions;
    std::vector<float> keys, values, received, scores;
  };
  std::vector<Head> heads_;
  EvictionState state_;
};

}  // namespace kvmix::testing
