#include "experiments/report/measures.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/str_format.h"

namespace kvmix {
namespace {

// Ranks from 0, equal values sharing the mean of theirs.
std::vector<double> Ranks(const std::vector<double>& values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](size_t i, size_t j) { return values[i] < values[j]; });
  std::vector<double> ranks(values.size());
  for (size_t i = 0; i < order.size();) {
    size_t end = i;
    while (end < order.size() && values[order[end]] == values[order[i]]) ++end;
    for (size_t k = i; k < end; ++k)
      ranks[order[k]] = (static_cast<double>(i + end) - 1) / 2;
    i = end;
  }
  return ranks;
}

}  // namespace

Judged Judge(const DatasetRecord& dataset) {
  const Quality& quality = dataset.quality();
  if (dataset.has_task()) {
    const TaskQuality& task = dataset.task();
    return {
        .name = task.metric(),
        .loss = false,
        .value = {task.score(), task.score_stderr()},
        .difference = {task.score_difference(), task.score_difference_stderr()},
        .samples = task.samples()};
  }
  const AnswerQuality& answers = quality.answers();
  if (answers.answers() > 0) {
    return {.name = "right answers",
            .loss = false,
            .value = {answers.accuracy(), answers.accuracy_stderr()},
            .difference = {answers.accuracy_difference(),
                           answers.accuracy_difference_stderr()},
            .samples = answers.answers()};
  }
  return {
      .name = "NLL",
      .loss = true,
      .value = {quality.nll(), 0},
      .difference = {quality.nll_difference(), quality.nll_difference_stderr()},
      .samples = quality.tokens()};
}

double WholeBits(const Memory& memory) {
  return memory.fp16_bytes() > 0 ? 16 * memory.bytes() / memory.fp16_bytes()
                                 : 16;
}

double ShareOfHighBitLayers(const CachePlan& plan) {
  if (plan.layer().empty()) return 0;
  int key = std::numeric_limits<int>::max(), value = key;
  for (const LayerPlan& layer : plan.layer()) {
    key = std::min<int>(key, layer.key().bits());
    value = std::min<int>(value, layer.value().bits());
  }
  int high = 0;
  for (const LayerPlan& layer : plan.layer())
    high += layer.key().bits() > key || layer.value().bits() > value;
  return static_cast<double>(high) / plan.layer_size();
}

const MethodSpeed* SpeedOf(const ReportedRun& run, const std::string& method) {
  for (const MethodSpeed& speed : run.timings.speed())
    if (speed.method() == method) return &speed;
  return nullptr;
}

double RankCorrelation(std::vector<double> a, std::vector<double> b) {
  a = Ranks(a);
  b = Ranks(b);
  const double n = static_cast<double>(a.size());
  const double mean = (n - 1) / 2;
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += (a[i] - mean) * (b[i] - mean);
    aa += (a[i] - mean) * (a[i] - mean);
    bb += (b[i] - mean) * (b[i] - mean);
  }
  return aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb)
                          : std::numeric_limits<double>::quiet_NaN();
}

std::string WithError(const Measured& measured, int digits, bool sign) {
  std::string text = sign ? absl::StrFormat("%+.*f", digits, measured.value)
                          : absl::StrFormat("%.*f", digits, measured.value);
  if (measured.error > 0)
    absl::StrAppendFormat(&text, " ± %.*f", digits, measured.error);
  return text;
}

}  // namespace kvmix
