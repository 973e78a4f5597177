#include "kvmix/importance/score_accumulator.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace kvmix {

void ScoreAccumulator::Moments::Add(double x, int64_t count) {
  const double step = x - mean;
  mean += step / static_cast<double>(count);
  squares += step * (x - mean);
}

double ScoreAccumulator::Moments::StandardError(int64_t count) const {
  if (count < 2) return 0;
  const double n = static_cast<double>(count);
  return std::sqrt(squares / (n - 1) / n);
}

absl::Status ScoreAccumulator::Add(const LayerTrace& trace, double key_score,
                                   double value_score) {
  for (const auto& [side, score] :
       {std::pair{"key", key_score}, std::pair{"value", value_score}}) {
    if (!std::isfinite(score) || score < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("prompt ", trace.prompt, ", layer ", trace.layer, ": ",
                       side, " score is ", score,
                       " but must be finite and at least 0; the model's "
                       "weights or gradients are not usable"));
    }
  }
  Layer& layer = layers_[trace.layer];
  ++layer.num_prompts;
  layer.num_tokens += trace.num_tokens;
  layer.key.Add(key_score, layer.num_prompts);
  layer.value.Add(value_score, layer.num_prompts);
  return absl::OkStatus();
}

absl::StatusOr<ImportanceProfile> ScoreAccumulator::Profile(
    const std::string& estimator, ImportanceProfile::Unit unit) const {
  if (layers_.empty()) {
    return absl::FailedPreconditionError(
        "num_layers is 0: the model has no layer to profile");
  }
  ImportanceProfile profile;
  profile.set_estimator(estimator);
  profile.set_unit(unit);
  profile.set_num_prompts(static_cast<int32_t>(layers_[0].num_prompts));
  profile.set_num_tokens(layers_[0].num_tokens);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    if (layer.num_prompts == 0 || layer.num_prompts != layers_[0].num_prompts) {
      return absl::FailedPreconditionError(absl::StrCat(
          "layer ", i, " was observed on ", layer.num_prompts,
          " prompts and layer 0 on ", layers_[0].num_prompts,
          "; every layer must be observed on every prompt, and on at least "
          "one"));
    }
    LayerImportance* importance = profile.add_layer();
    importance->set_key(layer.key.mean);
    importance->set_value(layer.value.mean);
    importance->set_key_stderr(layer.key.StandardError(layer.num_prompts));
    importance->set_value_stderr(layer.value.StandardError(layer.num_prompts));
  }
  return profile;
}

}  // namespace kvmix
