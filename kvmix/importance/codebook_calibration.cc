#include "kvmix/importance/codebook_calibration.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvmix/importance/causal_weights.h"
#include "kvmix/key_rotation.h"
#include "quant/outliers.h"

namespace kvmix {
namespace {

// States and gradients of one KV head, [T, D] each.
struct HeadStates {
  HeadStates(const LayerTrace& trace, const float* states,
             const float* gradients, int head)
      : x(RowsOfHead(states, trace.num_tokens, trace.num_kv_heads,
                     trace.head_dim, head)),
        gradient(RowsOfHead(gradients, trace.num_tokens, trace.num_kv_heads,
                            trace.head_dim, head)) {}
  RowMatrix x, gradient;
};

// Rows [T, D] turned back from their positions. A gradient turns back as its
// key does, up to a factor that all channels share.
void Unrotate(const KeyRotation& rotation, RowMatrix& rows) {
  RowMatrix columns = rows.transpose();
  rotation.Unrotate(0, columns.cols(), columns.data(), columns.cols());
  rows = columns.transpose();
}

// Outliers of tokens [first, first + tokens) leave their mean, whose error
// costs nothing.
void TakeOutliers(double fraction, int64_t first, int tokens, int head_dim,
                  HeadStates& head) {
  if (fraction == 0) return;
  float* x = head.x.data() + first * head_dim;
  float* gradient = head.gradient.data() + first * head_dim;
  const Outliers outliers = FarthestFromMean(
      x, tokens, head_dim, OutlierCount(fraction, tokens * head_dim));
  for (const int place : outliers.places) {
    x[place] = outliers.MeanOf(place);
    gradient[place] = 0;
  }
}

// One group: `size` numbers, `stride` apart.
void AddGroup(const float* x, const float* gradient, int size, int stride,
              ShareHistogram& shares) {
  float min = x[0], max = x[0];
  for (int i = 1; i < size; ++i) {
    min = std::min(min, x[i * stride]);
    max = std::max(max, x[i * stride]);
  }
  const double range = static_cast<double>(max) - min;
  if (range == 0) return;
  for (int i = 0; i < size; ++i) {
    const double moved = range * gradient[i * stride];
    shares.Add((static_cast<double>(x[i * stride]) - min) / range,
               moved * moved);
  }
}

}  // namespace

SignalSet CodebookCalibration::RequiredSignals() const {
  return {Signal::kKeyStates, Signal::kValueStates, Signal::kKeyStateGradient,
          Signal::kValueStateGradient};
}

absl::Status CodebookCalibration::Start(const ProfileContext&) {
  key_ = value_ = ShareHistogram();
  return absl::OkStatus();
}

absl::Status CodebookCalibration::Observe(const LayerTrace& trace) {
  const int dim = trace.head_dim, size = options_.group_size;
  if (dim % size != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("group_size is ", size, " but must divide head_dim, ", dim,
                     ", as groups of values lie along it"));
  }
  for (int h = 0; h < trace.num_kv_heads; ++h) {
    HeadStates keys(trace, trace.key_states, trace.key_state_gradient, h);
    if (options_.pre_rope) {
      Unrotate(*trace.key_rotation, keys.x);
      Unrotate(*trace.key_rotation, keys.gradient);
    }
    // Keys per channel; tokens that fill no group stay in the window.
    for (int64_t t = 0; t + size <= trace.num_tokens; t += size) {
      TakeOutliers(options_.outlier_fraction, t, size, dim, keys);
      for (int d = 0; d < dim; ++d)
        AddGroup(&keys.x.data()[t * dim + d],
                 &keys.gradient.data()[t * dim + d], size, dim, key_);
    }
    HeadStates values(trace, trace.value_states, trace.value_state_gradient, h);
    for (int64_t t = 0; t < trace.num_tokens; ++t) {
      TakeOutliers(options_.outlier_fraction, t, 1, dim, values);
      for (int d = 0; d < dim; d += size)
        AddGroup(&values.x.data()[t * dim + d],
                 &values.gradient.data()[t * dim + d], size, 1, value_);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ImportanceProfile> CodebookCalibration::Finish() {
  return absl::UnimplementedError("levels are no scores");
}

absl::StatusOr<std::vector<float>> CodebookCalibration::Levels(Side side,
                                                               int bits) const {
  return shares(side).OptimalLevels(1 << bits);
}

}  // namespace kvmix
