// ScoreAccumulator: mean and standard error over prompts of one score per
// layer, for keys and values.
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

class ScoreAccumulator {
 public:
  explicit ScoreAccumulator(int num_layers = 0) : layers_(num_layers) {}

  // Errors: a score that is not finite or is negative.
  absl::Status Add(const LayerTrace& trace, double key_score,
                   double value_score);

  // Errors: no layers, or a layer that has not seen as many prompts as the
  // first.
  absl::StatusOr<ImportanceProfile> Profile(const std::string& estimator,
                                            ImportanceProfile::Unit unit) const;

 private:
  // Welford's running mean and sum of squared deviations.
  struct Moments {
    double mean = 0;
    double squares = 0;
    void Add(double x, int64_t count);
    double StandardError(int64_t count) const;
  };
  struct Layer {
    int64_t num_prompts = 0;
    int64_t num_tokens = 0;
    Moments key;
    Moments value;
  };
  std::vector<Layer> layers_;
};

}  // namespace kvmix
