// Quality of a method from the logits it gives, beside those of full precision.
//
// V = vocabulary size. All sums are in double and in a fixed order. The KL
// divergence of equal logits is exactly 0; its noise floor is about 1e-8 nats,
// from exp in float.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "experiments/record.pb.h"

namespace kvmix {

// One row of logits [V], reduced.
struct LogitsRow {
  const float* logits = nullptr;
  double log_sum_exp = 0;  // not finite if a logit is not
  int32_t argmax = 0;      // the earliest of equals
};

LogitsRow ReduceLogits(const float* logits, int64_t vocab_size);

// Negative log-probability of `token`, in nats.
double Nll(const LogitsRow& row, int32_t token);

// KL(p || q) in nats, at least 0.
double KlDivergence(const LogitsRow& p, const LogitsRow& q, int64_t vocab_size);

// The value below which a share q in [0, 1] of the values lies, linear between
// neighbours (as numpy's default). Values are reordered. 0 if there are none.
double Quantile(std::vector<double>& values, double q);

// Mean of units that come in clusters (tokens in windows): sum of the cluster
// sums over the number of units, with the standard error of that ratio,
// clusters independent. 0 with fewer than two clusters.
struct ClusteredMean {
  double mean = 0;
  double standard_error = 0;
};
ClusteredMean MeanOverClusters(absl::Span<const double> sums,
                               absl::Span<const int64_t> counts);

// Quality of method `method` over the windows of one dataset; method 0 is full
// precision.
Quality SummarizeQuality(absl::Span<const WindowRecord> windows, int method);

// Mean over windows of the cache at their ends.
Memory SummarizeMemory(absl::Span<const WindowRecord> windows, int method);

}  // namespace kvmix
