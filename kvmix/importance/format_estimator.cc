#include "kvmix/importance/format_estimator.h"

#include "kvmix/base/check.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {

absl::Status FormatEstimator::Start(const ProfileContext& context) {
  KVMIX_CHECK(context.formats != nullptr);
  formats_ = *context.formats;
  KVMIX_ASSIGN_OR_RETURN(quantizer_,
                         StateQuantizer::Make(formats_, context.head_dim));
  scores_ = ScoreAccumulator(context.num_layers);
  return absl::OkStatus();
}

absl::Status FormatEstimator::Observe(const LayerTrace& trace) {
  StartTrace(trace);
  LayerScores scores;
  for (const Side side : {Side::kKey, Side::kValue}) {
    const bool key = side == Side::kKey;
    std::vector<double>& losses = key ? scores.key_losses : scores.value_losses;
    for (int f = 0; f < quantizer_->num_formats(side); ++f) {
      const SideLoss loss =
          LossOf(trace, side, quantizer_->Error(side, f, trace));
      losses.push_back(loss.layer);
      if (f > 0) continue;
      (key ? scores.key : scores.value) = loss.layer;
      (key ? scores.key_heads : scores.value_heads) = loss.heads;
    }
  }
  return scores_.Add(trace, scores);
}

absl::StatusOr<ImportanceProfile> FormatEstimator::Finish() {
  return scores_.Profile(name_, unit_, &formats_);
}

}  // namespace kvmix
