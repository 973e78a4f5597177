#include "quant/trellis_code.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "quant/normal_codebook.h"

namespace kvmix {
namespace {

constexpr float kLargest = 1e15f;  // squares of these still add up in float

// By bits. The levels are those of the best scalar quantizer with twice as
// many, drawn in by `factor`, the best of hundredths on normal numbers; `error`
// is what is left on normal numbers, 128 at a time (normal_code_test measures
// it anew).
struct Measured {
  float factor;
  double error;
};

constexpr Measured kMeasured[] = {
    {0.80f, 0.2983},   {0.85f, 0.0849},   {0.88f, 0.02336}, {0.90f, 0.006195},
    {0.91f, 0.001597}, {0.91f, 0.000404}, {0.91f, 0.000101}};

}  // namespace

TrellisCode::TrellisCode(int bits)
    : levels_(NormalCodebook(bits + 1)), error_(kMeasured[bits - 1].error) {
  for (float& level : levels_) level *= kMeasured[bits - 1].factor;
  for (unsigned w = 0; w < subset_.size(); ++w)
    subset_[w] = static_cast<uint8_t>(2 * (std::popcount(w & 0103) & 1) +
                                      (std::popcount(w & 024) & 1));
}

// Of four levels on either side of x, one is of each subset.
TrellisCode::Nearest TrellisCode::NearestOf(float x) const {
  const int above = static_cast<int>(
      std::upper_bound(levels_.begin(), levels_.end(), x) - levels_.begin());
  Nearest nearest;
  nearest.distance.fill(INFINITY);
  const int end = std::min(above + 4, static_cast<int>(levels_.size()));
  for (int i = std::max(above - 4, 0); i < end; ++i) {
    const float distance = (levels_[i] - x) * (levels_[i] - x);
    if (distance >= nearest.distance[i % 4]) continue;
    nearest.distance[i % 4] = distance;
    nearest.level[i % 4] = i;
  }
  return nearest;
}

// States p and p + 32 lead to 2p and 2p + 1, and w of the upper one differs
// from that of the lower one in its highest bit, which 0103 has and 024 has
// not. So two subsets serve the four ways: `a` from below to 2p and from above
// to 2p + 1, `b` the others.
void TrellisCode::Encode(const float* x, int n, uint32_t* codes) const {
  constexpr int kHalf = kStates / 2;
  std::array<int32_t, kHalf> odd, far;  // subset_ of p's first way, by its bits
  for (int p = 0; p < kHalf; ++p) {
    odd[p] = subset_[2 * p] & 1;
    far[p] = subset_[2 * p] & 2;
  }
  std::vector<Nearest> nearest(n);
  // Whether the best way into a state comes from the upper half of states.
  std::vector<std::array<int32_t, kStates>> from_upper(n);
  std::array<float, kStates> cost, next;
  cost.fill(INFINITY);
  cost[0] = 0;
  for (int t = 0; t < n; ++t) {
    nearest[t] = NearestOf(
        std::isfinite(x[t]) ? std::clamp(x[t], -kLargest, kLargest) : 0.0f);
    const auto [d0, d1, d2, d3] = nearest[t].distance;
    std::array<int32_t, kStates>& upper = from_upper[t];
    for (int p = 0; p < kHalf; ++p) {
      const float low = odd[p] ? d1 : d0, high = odd[p] ? d3 : d2;
      const float a = far[p] ? high : low, b = far[p] ? low : high;
      const float even[] = {cost[p] + a, cost[p + kHalf] + b};
      const float uneven[] = {cost[p] + b, cost[p + kHalf] + a};
      upper[2 * p] = even[1] < even[0];
      upper[2 * p + 1] = uneven[1] < uneven[0];
      next[2 * p] = even[1] < even[0] ? even[1] : even[0];
      next[2 * p + 1] = uneven[1] < uneven[0] ? uneven[1] : uneven[0];
    }
    cost = next;
  }
  int state = static_cast<int>(std::min_element(cost.begin(), cost.end()) -
                               cost.begin());
  for (int t = n - 1; t >= 0; --t) {
    const int w = state + kStates * from_upper[t][state];
    codes[t] =
        static_cast<uint32_t>(nearest[t].level[subset_[w]] / 4 * 2 + w % 2);
    state = w / 2;
  }
}

void TrellisCode::Decode(const uint32_t* codes, int n, float* levels) const {
  unsigned w = 0;
  for (int t = 0; t < n; ++t) {
    w = (w << 1 | (codes[t] & 1)) & (2 * kStates - 1);
    levels[t] = levels_[(codes[t] >> 1) * 4 + subset_[w]];
  }
}

}  // namespace kvmix
