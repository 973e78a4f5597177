// CodebookCalibration: levels for quantizer "codebook", fitted to a model's own
// keys and values, errors weighted by squared gradients: the diagonal of the
// Fisher information, as KVQuant calibrates its levels (Hooper et al., arXiv
// 2401.18079, section 3.3).
//
// A number's share u of its group's range r is stored as a level; if that is
// off by e, the number is off by r e, and the loss by about g^2 r^2 e^2 / 2
// with g its gradient. So levels are fitted to shares of the weight g^2 r^2,
// over all layers and KV heads.
//
// T = tokens, G = KV heads, D = head_dim.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "kvmix/importance/importance_estimator.h"
#include "quant/codebook.pb.h"
#include "quant/quantizer.h"
#include "quant/share_histogram.h"

namespace kvmix {

struct CodebookCalibrationOptions {
  int group_size = 32;
  // Of each granule, what "sparse_outliers" takes out before; 0: none.
  double outlier_fraction = 0;
  bool pre_rope = false;  // keys before RoPE
};

// Shown traces like an estimator; ranks nothing.
class CodebookCalibration final : public ImportanceEstimator {
 public:
  explicit CodebookCalibration(const CodebookCalibrationOptions& options)
      : options_(options) {}

  SignalSet RequiredSignals() const override;
  absl::Status Start(const ProfileContext& context) override;
  // Error: InvalidArgument for values whose head_dim is no multiple of
  // group_size.
  absl::Status Observe(const LayerTrace& trace) override;
  absl::StatusOr<ImportanceProfile> Finish() override;

  // The fitted levels of 2^bits shares. Error: as ShareHistogram's.
  absl::StatusOr<std::vector<float>> Levels(Side side, int bits) const;
  // What they lose, g^2 r^2 e^2 in the mean, over what others do.
  const ShareHistogram& shares(Side side) const {
    return side == Side::kKey ? key_ : value_;
  }

 private:
  const CodebookCalibrationOptions options_;
  ShareHistogram key_, value_;
};

}  // namespace kvmix
