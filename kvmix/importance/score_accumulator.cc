#include "kvmix/importance/score_accumulator.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kvmix/base/check.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {

const ScoreAccumulator::List ScoreAccumulator::kLists[] = {
    {"key", &LayerScores::key_heads, &LayerImportance::mutable_key_head},
    {"value", &LayerScores::value_heads, &LayerImportance::mutable_value_head},
    {"key", &LayerScores::key_losses, &LayerImportance::mutable_key_loss},
    {"value", &LayerScores::value_losses, &LayerImportance::mutable_value_loss},
    {"key", &LayerScores::key_head_losses,
     &LayerImportance::mutable_key_head_loss},
    {"value", &LayerScores::value_head_losses,
     &LayerImportance::mutable_value_head_loss},
};

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

absl::Status ScoreAccumulator::Validate(int prompt, int layer, const char* side,
                                        double score) const {
  if (std::isfinite(score) && (score >= 0 || sign_ == Sign::kAny))
    return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "prompt ", prompt, ", layer ", layer, ": ", side, " score is ", score,
      " but must be finite", sign_ == Sign::kAny ? "" : " and at least 0",
      "; the model's weights or gradients are not usable"));
}

absl::Status ScoreAccumulator::AddAll(int prompt, int layer, const char* side,
                                      const std::vector<double>& scores,
                                      int64_t count,
                                      std::vector<Moments>& all) const {
  KVMIX_CHECK(count == 1 || scores.size() == all.size());
  all.resize(scores.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    KVMIX_RETURN_IF_ERROR(Validate(prompt, layer, side, scores[i]));
    all[i].Add(scores[i], count);
  }
  return absl::OkStatus();
}

absl::Status ScoreAccumulator::Add(int prompt, int layer_index,
                                   int64_t num_tokens,
                                   const LayerScores& scores) {
  KVMIX_RETURN_IF_ERROR(Validate(prompt, layer_index, "key", scores.key));
  KVMIX_RETURN_IF_ERROR(Validate(prompt, layer_index, "value", scores.value));
  Layer& layer = layers_[layer_index];
  const int64_t count = ++layer.num_prompts;
  layer.num_tokens += num_tokens;
  layer.key_by_prompt.push_back(scores.key);
  layer.value_by_prompt.push_back(scores.value);
  layer.key.Add(scores.key, count);
  layer.value.Add(scores.value, count);
  for (int i = 0; i < kNumLists; ++i) {
    KVMIX_RETURN_IF_ERROR(AddAll(prompt, layer_index, kLists[i].side,
                                 scores.*kLists[i].scores, count,
                                 layer.lists[i]));
  }
  return absl::OkStatus();
}

double ScoreAccumulator::Mean(const Moments& moments) const {
  return sign_ == Sign::kAny ? std::max(moments.mean, 0.0) : moments.mean;
}

absl::StatusOr<ImportanceProfile> ScoreAccumulator::Profile(
    const std::string& estimator, ImportanceProfile::Unit unit,
    const FormatChoices* formats) const {
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
    importance->set_key(Mean(layer.key));
    importance->set_value(Mean(layer.value));
    importance->set_key_stderr(layer.key.StandardError(layer.num_prompts));
    importance->set_value_stderr(layer.value.StandardError(layer.num_prompts));
    importance->mutable_key_by_prompt()->Assign(layer.key_by_prompt.begin(),
                                                layer.key_by_prompt.end());
    importance->mutable_value_by_prompt()->Assign(layer.value_by_prompt.begin(),
                                                  layer.value_by_prompt.end());
    for (int l = 0; l < kNumLists; ++l) {
      // A copy: GCC 12's check of bounds reads a wrong index inside ->*.
      const auto field = kLists[l].field;
      for (const Moments& m : layer.lists[l])
        (importance->*field)()->Add(Mean(m));
    }
  }
  if (formats != nullptr) *profile.mutable_formats() = *formats;
  return profile;
}

}  // namespace kvmix
