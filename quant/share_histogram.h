// ShareHistogram: weighted numbers in [0, 1], and the levels that store them
// with the least squared error: weighted k-means in one dimension, solved
// exactly over the bins. A "share" is a number's place in the range of its
// group, as quantizer "codebook" has it.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace kvmix {

// 2^bits levels from 0 to 1.
std::vector<float> EquallySpacedLevels(int bits);

class ShareHistogram {
 public:
  explicit ShareHistogram(int bins = 2048);

  // Shares beyond [0, 1] fall into the outermost bins; weight >= 0.
  void Add(double share, double weight);

  // `count` levels, ascending: means of runs of neighbouring bins, of all ways
  // to cut the bins into `count` runs the one with the least weighted squared
  // error. Error: FailedPrecondition if fewer bins have a weight.
  absl::StatusOr<std::vector<float>> OptimalLevels(int count) const;

  // Weighted mean squared distance of the shares from their bin's nearest
  // level; the bin's mean decides which that is. 0 if nothing has a weight.
  double Error(absl::Span<const float> levels) const;

 private:
  struct Bin {
    double weight = 0, sum = 0, squares = 0;
  };
  std::vector<Bin> bins_;
};

}  // namespace kvmix
