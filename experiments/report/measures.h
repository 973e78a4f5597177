// Figures of records as reports use them.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "experiments/record.pb.h"
#include "experiments/report/collect.h"
#include "quant/quantizer.h"

namespace kvmix {

// A figure with its standard error.
struct Measured {
  double value = 0;
  double error = 0;  // 0: not known
};

// What a dataset is judged by: the score of its task; else the share of right
// answers; else the loss in nats per token. `loss`: lower is better.
struct Judged {
  std::string name;  // "exact match", "right answers", "NLL"
  bool loss = false;
  Measured value;
  Measured difference;  // to full precision, paired
  int64_t samples = 0;
};
Judged Judge(const DatasetRecord& dataset);

// Bits of an element of the whole cache, full-precision tokens included.
double WholeBits(const Memory& memory);

// The fewest bits that a layer's keys, and values, have in any of some plans.
struct LowestBits {
  int key = std::numeric_limits<int>::max();
  int value = std::numeric_limits<int>::max();

  void Include(const CachePlan& plan);
};

// Nominal bits of a layer's keys (values), the mean over its KV heads.
double MeanBits(const LayerPlan& layer, Side side);

// Share of layers whose keys or values have more bits than that. Where KV heads
// have formats of their own, a layer counts with its share of such heads.
double ShareOfHighBitLayers(const CachePlan& plan, const LowestBits& lowest);

const MethodSpeed* SpeedOf(const ReportedRun& run, const std::string& method);

// Spearman's; NaN where one of the two ranks nothing: fewer than two values, or
// all equal.
double RankCorrelation(const std::vector<double>& a,
                       const std::vector<double>& b);

// "+0.0123 ± 0.0045"
std::string WithError(const Measured& measured, int digits, bool sign);

}  // namespace kvmix
