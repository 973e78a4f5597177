// KeyRotation: how a model turns keys by their position (RoPE), and back, for
// whoever stores keys as they were before (BlockCodec::pre_rope).
//
// Pair i of a key, elements i and i + D / 2, at position p:
//   y_i       = cos_i(p) x_i - sin_i(p) x_(i + D/2)
//   y_(i+D/2) = cos_i(p) x_(i + D/2) + sin_i(p) x_i
// Back is the transpose divided by cos^2 + sin^2, which also takes out a factor
// that the model puts on both (YaRN). D = head_dim.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <shared_mutex>
#include <vector>

namespace kvmix {

// Thread-safe.
class KeyRotation {
 public:
  // cos and sin of a position, [D / 2] each.
  using Angles = std::function<void(int64_t position, float* cos, float* sin)>;

  // `angles` is thread-safe, and asked once for each position that is met; a
  // position takes 4 D bytes from then on.
  KeyRotation(int head_dim, Angles angles);

  // x [D, stride]: column t is the key at position first + t, which is turned
  // in place. stride >= count. A number changes by a few roundings of float
  // when turned and turned back.
  void Rotate(int64_t first, int64_t count, float* x, int64_t stride) const;
  void Unrotate(int64_t first, int64_t count, float* x, int64_t stride) const;

 private:
  static constexpr int64_t kPageTokens = 64;
  // [2, D / 2, kPageTokens]: cos, then sin.
  using Page = std::unique_ptr<const float[]>;

  const float* PageAt(int64_t index) const;
  Page NewPage(int64_t index) const;
  // turn(cos, sin, n, a, b) for every pair and every page: n neighbouring
  // tokens of its two channels.
  template <typename Turn>
  void ForEachPair(int64_t first, int64_t count, float* x, int64_t stride,
                   const Turn& turn) const;

  const int half_;  // D / 2
  const Angles angles_;
  mutable std::shared_mutex mutex_;
  mutable std::vector<Page> pages_;
};

}  // namespace kvmix
