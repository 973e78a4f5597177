#include "experiments/tasks/summaries.h"

#include <algorithm>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include "experiments/metrics.h"

namespace kvmix {
namespace {

using Windows = absl::Span<const WindowRecord>;

constexpr int kPositionBins = 16;

// Sum of the answers' losses over the choice's length.
double ChoiceLoss(const WindowRecord& window, int method) {
  double nll = 0;
  for (const AnswerSpan& answer : window.answer()) {
    for (int i = answer.begin(); i < answer.begin() + answer.count(); ++i)
      nll += window.method(method).nll(i);
  }
  return nll / window.choice_length();
}

// For each item, 1 if its likeliest choice is the right one.
std::vector<double> ChoiceScores(Windows windows, int method) {
  struct Best {
    double loss = std::numeric_limits<double>::infinity();
    bool right = false;
  };
  std::map<int, Best> items;
  for (const WindowRecord& window : windows) {
    Best& best = items[window.item()];
    const double loss = ChoiceLoss(window, method);
    if (loss < best.loss) best = {loss, window.right_choice()};
  }
  std::vector<double> scores;
  for (const auto& [item, best] : items) scores.push_back(best.right);
  return scores;
}

std::vector<double> Scores(Windows windows, int method) {
  if (!windows.empty() && windows[0].item() > 0)
    return ChoiceScores(windows, method);
  std::vector<double> scores;
  for (const WindowRecord& window : windows)
    scores.push_back(window.method(method).score());
  return scores;
}

ClusteredMean MeanOf(const std::vector<double>& values) {
  const std::vector<int64_t> ones(values.size(), 1);
  return MeanOverClusters(values, ones);
}

std::vector<std::pair<std::string, std::vector<WindowRecord>>> ByGroup(
    Windows windows) {
  std::map<std::string, std::vector<WindowRecord>> groups;
  for (const WindowRecord& window : windows)
    if (!window.group().empty()) groups[window.group()].push_back(window);
  return {groups.begin(), groups.end()};
}

void AddPositions(Windows windows, int method, DatasetRecord& dataset) {
  int longest = 0;
  for (const WindowRecord& window : windows)
    longest = std::max(longest, window.method(method).kl_size());
  const int step = (longest + kPositionBins - 1) / kPositionBins;
  for (int begin = 0; begin < longest; begin += step) {
    std::vector<double> kl, nll;
    std::vector<int64_t> counts;
    for (const WindowRecord& window : windows) {
      const WindowMethod& own = window.method(method);
      const int end = std::min(begin + step, own.kl_size());
      if (end <= begin) continue;
      kl.push_back(0);
      nll.push_back(0);
      counts.push_back(end - begin);
      for (int i = begin; i < end; ++i) {
        kl.back() += own.kl(i);
        nll.back() += own.nll(i) - window.method(0).nll(i);
      }
    }
    const ClusteredMean mean = MeanOverClusters(kl, counts);
    PositionRecord& position = *dataset.add_position();
    position.set_begin(begin + 1);  // token i is scored by the logits before it
    position.set_end(std::min(begin + step, longest) + 1);
    position.set_kl_mean(mean.mean);
    position.set_kl_stderr(mean.standard_error);
    position.set_nll_difference(MeanOverClusters(nll, counts).mean);
  }
}

void AddPlaces(Windows windows, int method, DatasetRecord& dataset) {
  std::map<std::pair<int, double>, std::vector<WindowRecord>> places;
  for (const WindowRecord& window : windows) {
    if (window.context_tokens() > 0)
      places[{window.context_tokens(), window.depth()}].push_back(window);
  }
  for (const auto& [place, own] : places) {
    const AnswerQuality answers = SummarizeQuality(own, method).answers();
    PlaceRecord& record = *dataset.add_place();
    record.set_tokens(place.first);
    record.set_depth(place.second);
    record.set_answers(static_cast<int>(answers.answers()));
    record.set_accuracy(answers.accuracy());
    record.set_nll(answers.nll());
  }
}

}  // namespace

TaskQuality SummarizeTask(Windows windows, int method,
                          const std::string& metric) {
  const std::vector<double> own = Scores(windows, method);
  std::vector<double> difference = own;
  const std::vector<double> full = Scores(windows, 0);
  for (size_t i = 0; i < own.size(); ++i) difference[i] -= full[i];
  TaskQuality quality;
  quality.set_metric(metric);
  quality.set_samples(static_cast<int64_t>(own.size()));
  quality.set_score(MeanOf(own).mean);
  quality.set_score_stderr(MeanOf(own).standard_error);
  quality.set_score_difference(MeanOf(difference).mean);
  quality.set_score_difference_stderr(MeanOf(difference).standard_error);
  return quality;
}

void AddTaskSummaries(Windows windows, int method, const std::string& metric,
                      DatasetRecord& dataset) {
  if (!metric.empty())
    *dataset.mutable_task() = SummarizeTask(windows, method, metric);
  for (const auto& [name, own] : ByGroup(windows)) {
    GroupRecord& group = *dataset.add_group();
    group.set_name(name);
    group.set_windows(static_cast<int>(own.size()));
    *group.mutable_quality() = SummarizeQuality(own, method);
    if (!metric.empty())
      *group.mutable_task() = SummarizeTask(own, method, metric);
  }
  AddPositions(windows, method, dataset);
  AddPlaces(windows, method, dataset);
}

}  // namespace kvmix
