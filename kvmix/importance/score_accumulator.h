// ScoreAccumulator: mean and standard error over prompts of the scores of every
// layer.
//
// The part that estimators of the form "a number per prompt and layer,
// averaged" share. Layers may come in any order and do not affect each other.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvmix/importance_profile.pb.h"
#include "kvmix/layer_trace.h"

namespace kvmix {

// Of one layer on one prompt, keys and values apart. Lists may be left empty,
// but are as long on every prompt.
struct LayerScores {
  double key = 0;
  double value = 0;
  std::vector<double> key_heads = {}, value_heads = {};    // [G]
  std::vector<double> key_losses = {}, value_losses = {};  // [formats]
  // [G, formats], head by head
  std::vector<double> key_head_losses = {}, value_head_losses = {};
};

class ScoreAccumulator {
 public:
  // kAny: scores may be negative on a prompt (differences of losses); means
  // below 0 become 0 in the profile.
  enum class Sign { kNonNegative, kAny };
  explicit ScoreAccumulator(int num_layers = 0, Sign sign = Sign::kNonNegative)
      : sign_(sign), layers_(num_layers) {}

  // Errors: a score that is not finite or is negative.
  absl::Status Add(int prompt, int layer, int64_t num_tokens,
                   const LayerScores& scores);
  absl::Status Add(const LayerTrace& trace, const LayerScores& scores) {
    return Add(trace.prompt, trace.layer, trace.num_tokens, scores);
  }
  absl::Status Add(const LayerTrace& trace, double key_score,
                   double value_score) {
    return Add(trace, {.key = key_score, .value = value_score});
  }

  // formats: those of the losses; null if there are none. Errors: no layers, or
  // a layer that has not seen as many prompts as the first.
  absl::StatusOr<ImportanceProfile> Profile(
      const std::string& estimator, ImportanceProfile::Unit unit,
      const FormatChoices* formats = nullptr) const;

 private:
  // Welford's running mean and sum of squared deviations.
  struct Moments {
    double mean = 0;
    double squares = 0;
    void Add(double x, int64_t count);
    double StandardError(int64_t count) const;
  };
  // The lists of LayerScores, and where a profile has them.
  static constexpr int kNumLists = 6;
  struct List {
    const char* side;
    std::vector<double> LayerScores::*scores;
    google::protobuf::RepeatedField<double>* (LayerImportance::*field)();
  };
  static const List kLists[kNumLists];
  struct Layer {
    int64_t num_prompts = 0;
    int64_t num_tokens = 0;
    Moments key;
    Moments value;
    std::vector<double> key_by_prompt, value_by_prompt;
    std::vector<Moments> lists[kNumLists];
  };
  absl::Status Validate(int prompt, int layer, const char* side,
                        double score) const;
  absl::Status AddAll(int prompt, int layer, const char* side,
                      const std::vector<double>& scores, int64_t count,
                      std::vector<Moments>& all) const;
  double Mean(const Moments& moments) const;

  Sign sign_;
  std::vector<Layer> layers_;
};

}  // namespace kvmix
