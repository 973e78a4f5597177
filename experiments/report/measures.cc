#include "experiments/report/measures.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "absl/strings/str_format.h"
#include "experiments/compare/rank_correlation.h"
#include "kvmix/cache_plan.h"

namespace kvmix {
namespace {

bool AllEqual(const std::vector<double>& values) {
  return std::adjacent_find(values.begin(), values.end(),
                            std::not_equal_to<>()) == values.end();
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

void LowestBits::Include(const CachePlan& plan) {
  for (const LayerPlan& layer : plan.layer()) {
    for (const QuantFormat* format : FormatsOf(layer, Side::kKey))
      key = std::min<int>(key, format->bits());
    for (const QuantFormat* format : FormatsOf(layer, Side::kValue))
      value = std::min<int>(value, format->bits());
  }
}

double MeanBits(const LayerPlan& layer, Side side) {
  const std::vector<const QuantFormat*> formats = FormatsOf(layer, side);
  double sum = 0;
  for (const QuantFormat* format : formats) sum += format->bits();
  return sum / static_cast<double>(formats.size());
}

double ShareOfHighBitLayers(const CachePlan& plan, const LowestBits& lowest) {
  if (plan.layer().empty()) return 0;
  double high = 0;
  for (const LayerPlan& layer : plan.layer()) {
    const int heads =
        static_cast<int>(std::max(FormatsOf(layer, Side::kKey).size(),
                                  FormatsOf(layer, Side::kValue).size()));
    int high_heads = 0;
    for (int head = 0; head < heads; ++head) {
      high_heads +=
          FormatOfHead(layer, Side::kKey, head).bits() > lowest.key ||
          FormatOfHead(layer, Side::kValue, head).bits() > lowest.value;
    }
    high += static_cast<double>(high_heads) / heads;
  }
  return high / plan.layer_size();
}

const MethodSpeed* SpeedOf(const ReportedRun& run, const std::string& method) {
  for (const MethodSpeed& speed : run.timings.speed())
    if (speed.method() == method) return &speed;
  return nullptr;
}

double RankCorrelation(const std::vector<double>& a,
                       const std::vector<double>& b) {
  return AllEqual(a) || AllEqual(b) ? std::numeric_limits<double>::quiet_NaN()
                                    : Spearman(a, b);
}

std::string WithError(const Measured& measured, int digits, bool sign) {
  std::string text = sign ? absl::StrFormat("%+.*f", digits, measured.value)
                          : absl::StrFormat("%.*f", digits, measured.value);
  if (measured.error > 0)
    absl::StrAppendFormat(&text, " ± %.*f", digits, measured.error);
  return text;
}

}  // namespace kvmix
