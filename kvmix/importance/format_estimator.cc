#include "kvmix/importance/format_estimator.h"

#include "kvmix/base/check.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {

absl::Status FormatEstimator::Start(const ProfileContext& context) {
  KVMIX_CHECK(context.formats != nullptr);
  formats_ = *context.formats;
  granularity_ = context.granularity;
  KVMIX_ASSIGN_OR_RETURN(quantizer_,
                         StateQuantizer::Make(formats_, context.head_dim));
  scores_ = ScoreAccumulator(context.num_layers);
  return absl::OkStatus();
}

void FormatEstimator::AddSide(const LayerTrace& trace, Side side,
                              LayerScores& scores) const {
  const bool key = side == Side::kKey;
  const int num_formats = quantizer_->num_formats(side);
  std::vector<double>& losses = key ? scores.key_losses : scores.value_losses;
  std::vector<double>& head_losses =
      key ? scores.key_head_losses : scores.value_head_losses;
  if (granularity_ == CachePlan::HEAD)
    head_losses.resize(static_cast<size_t>(trace.num_kv_heads) * num_formats);
  for (int f = 0; f < num_formats; ++f) {
    const SideLoss loss =
        LossOf(trace, side, quantizer_->Error(side, f, trace));
    losses.push_back(loss.layer);
    for (size_t at = f, head = 0; at < head_losses.size(); at += num_formats)
      head_losses[at] = loss.heads[head++];
    if (f > 0) continue;
    (key ? scores.key : scores.value) = loss.layer;
    (key ? scores.key_heads : scores.value_heads) = loss.heads;
  }
}

absl::Status FormatEstimator::Observe(const LayerTrace& trace) {
  StartTrace(trace);
  LayerScores scores;
  AddSide(trace, Side::kKey, scores);
  AddSide(trace, Side::kValue, scores);
  return scores_.Add(trace, scores);
}

absl::StatusOr<ImportanceProfile> FormatEstimator::Finish() {
  return scores_.Profile(name_, unit_, &formats_);
}

}  // namespace kvmix
