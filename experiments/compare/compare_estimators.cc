#include "experiments/compare/compare_estimators.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "experiments/compare/rank_correlation.h"
#include "experiments/metrics.h"
#include "experiments/stages.h"
#include "experiments/svg.h"
#include "experiments/text_proto.h"
#include "kvmix/base/random.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

using Scores = std::vector<double>;  // [L]

// Scores of keys or of values.
struct SideScores {
  Scores all;
  std::vector<Scores> by_prompt;  // none if no prompt was looked at
};

SideScores SideOf(const ImportanceProfile& profile, bool key) {
  SideScores scores;
  for (const LayerImportance& layer : profile.layer()) {
    scores.all.push_back(key ? layer.key() : layer.value());
    const auto& prompts = key ? layer.key_by_prompt() : layer.value_by_prompt();
    scores.by_prompt.resize(prompts.size());
    for (int p = 0; p < prompts.size(); ++p)
      scores.by_prompt[p].push_back(prompts[p]);
  }
  return scores;
}

// Mean over the prompts at [first, last) of `order`.
Scores MeanOf(const SideScores& scores, const std::vector<int>& order,
              size_t first, size_t last) {
  if (scores.by_prompt.empty()) return scores.all;
  Scores mean(scores.all.size());
  for (size_t i = first; i < last; ++i) {
    const Scores& prompt = scores.by_prompt[order[i]];
    for (size_t l = 0; l < mean.size(); ++l) mean[l] += prompt[l];
  }
  return mean;
}

// Streams of random numbers, one a resample.
constexpr uint64_t kBootstrapStream = uint64_t{3} << 48;
constexpr uint64_t kHalvesStream = uint64_t{4} << 48;

void Bootstrap(const SideScores& scores, const SideScores& oracle,
               const CompareOptions& options, RankAgreement& agreement) {
  const int num_prompts = static_cast<int>(oracle.by_prompt.size());
  std::vector<double> correlations;
  std::vector<int> drawn(num_prompts);
  for (int r = 0; r < options.resamples; ++r) {
    CounterRandom random(options.seed, kBootstrapStream + r);
    for (int& prompt : drawn)
      prompt = static_cast<int>(random.Below(num_prompts));
    correlations.push_back(Spearman(MeanOf(scores, drawn, 0, drawn.size()),
                                    MeanOf(oracle, drawn, 0, drawn.size())));
  }
  agreement.spearman_low = Quantile(correlations, 0.025);
  agreement.spearman_high = Quantile(correlations, 0.975);
}

double AgreementOfHalves(const SideScores& scores,
                         const CompareOptions& options) {
  const int num_prompts = static_cast<int>(scores.by_prompt.size());
  if (num_prompts < 2) return kNone;
  std::vector<int> order(num_prompts);
  double sum = 0;
  for (int r = 0; r < options.resamples; ++r) {
    CounterRandom random(options.seed, kHalvesStream + r);
    std::iota(order.begin(), order.end(), 0);
    for (int i = num_prompts - 1; i > 0; --i)
      std::swap(order[i], order[random.Below(i + 1)]);
    const size_t half = num_prompts / 2;
    sum += Spearman(MeanOf(scores, order, 0, half),
                    MeanOf(scores, order, half, 2 * half));
  }
  return sum / options.resamples;
}

RankAgreement Agreement(const std::vector<StoredProfile>& profiles,
                        const ImportanceProfile& oracle, bool key,
                        const CompareOptions& options) {
  const SideScores scores = SideOf(profiles[0].profile(), key);
  const SideScores truth = SideOf(oracle, key);
  RankAgreement agreement;
  agreement.spearman = Spearman(scores.all, truth.all);
  agreement.kendall = Kendall(scores.all, truth.all);
  Bootstrap(scores, truth, options, agreement);
  agreement.halves = AgreementOfHalves(scores, options);
  agreement.seeds = profiles.size() < 2 ? kNone : 0;
  for (size_t s = 1; s < profiles.size(); ++s) {
    agreement.seeds +=
        Spearman(scores.all, SideOf(profiles[s].profile(), key).all) /
        static_cast<double>(profiles.size() - 1);
  }
  return agreement;
}

double AgreementOfAll(const ImportanceProfile& profile,
                      const ImportanceProfile& oracle) {
  if (profile.unit() == ImportanceProfile::RANK_ONLY) return kNone;
  Scores scores = SideOf(profile, true).all, truth = SideOf(oracle, true).all;
  for (double score : SideOf(profile, false).all) scores.push_back(score);
  for (double score : SideOf(oracle, false).all) truth.push_back(score);
  return Spearman(scores, truth);
}

// One for each seed.
absl::StatusOr<std::vector<StoredProfile>> ProfilesOf(
    LoadedModel& model, const Component& estimator, bool time_forward,
    const CompareOptions& options) {
  std::vector<StoredProfile> profiles;
  for (int s = 0; s < options.seeds; ++s) {
    const uint64_t seed = options.seed + s;
    KVMIX_ASSIGN_OR_RETURN(
        StoredProfile profile,
        Profile(model, {.estimator = estimator,
                        .formats = options.formats,
                        .trial_chunk_tokens = options.trial_chunk_tokens,
                        .prompts = [&] { return options.prompts(seed); },
                        .seed = seed,
                        .folder = "",
                        .time_forward = time_forward && s == 0,
                        .stop = options.stop}));
    profiles.push_back(std::move(profile));
  }
  return profiles;
}

// The name, with the options that are set.
std::string NameOf(const Component& estimator) {
  if (!estimator.has_options()) return estimator.name();
  Component options = estimator;
  options.clear_name();
  std::string text = PrintTextProto(options);
  // "options { [type.googleapis.com/kvmix.XOptions] { a: 1 } }" -> "a: 1"
  const size_t first = text.find("] {"),
               last = text.rfind('}', text.rfind('}') - 1);
  if (first == std::string::npos || last <= first + 3) return estimator.name();
  text = text.substr(first + 3, last - first - 3);
  std::string line;
  for (char c : text) {
    if (c == '\n') c = ' ';
    if (c != ' ' || (!line.empty() && line.back() != ' ')) line += c;
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line.empty() ? estimator.name()
                      : absl::StrCat(estimator.name(), " { ", line, " }");
}

std::string Rounded(double x) {
  return std::isnan(x) ? "-" : absl::StrFormat("%.2f", x);
}

std::string Exact(double x) {
  return std::isnan(x) ? "" : absl::StrFormat("%.6g", x);
}

double MeanSpearman(const EstimatorRow& row) {
  return (row.key.spearman + row.value.spearman) / 2;
}

std::vector<EstimatorRow> BestFirst(std::vector<EstimatorRow> rows) {
  std::stable_sort(rows.begin(), rows.end(),
                   [](const EstimatorRow& a, const EstimatorRow& b) {
                     return MeanSpearman(a) > MeanSpearman(b);
                   });
  return rows;
}

}  // namespace

absl::StatusOr<Comparison> CompareEstimators(LoadedModel& model,
                                             const CompareOptions& options) {
  Comparison comparison;
  comparison.oracle = NameOf(options.oracle);
  ImportanceProfile oracle;
  std::vector<Component> all = {options.oracle};
  all.insert(all.end(), options.estimators.begin(), options.estimators.end());
  for (const Component& estimator : all) {
    const bool is_oracle = comparison.rows.empty();
    KVMIX_ASSIGN_OR_RETURN(
        const std::vector<StoredProfile> profiles,
        ProfilesOf(model, estimator, /*time_forward=*/is_oracle, options));
    const ImportanceProfile& profile = profiles[0].profile();
    if (is_oracle) {
      oracle = profile;
      if (SideOf(oracle, true).by_prompt.empty()) {
        return absl::InvalidArgumentError(
            absl::StrCat("the oracle \"", estimator.name(),
                         "\" looks at no prompt; take one that does, as "
                         "\"leave_one_out\""));
      }
      comparison.num_prompts = oracle.num_prompts();
      comparison.num_tokens = oracle.num_tokens();
      comparison.forward_seconds = profiles[0].forward_seconds();
    }
    comparison.rows.push_back(
        {.name = NameOf(estimator),
         .unit = ImportanceProfile::Unit_Name(profile.unit()),
         .key = Agreement(profiles, oracle, /*key=*/true, options),
         .value = Agreement(profiles, oracle, /*key=*/false, options),
         .spearman_all = AgreementOfAll(profile, oracle),
         .seconds = profiles[0].seconds()});
  }
  return comparison;
}

Table ComparisonTable(const Comparison& comparison) {
  Table table;
  table.header = {"estimator", "K rho",   "95 %",    "K tau",    "V rho",
                  "95 %",      "V tau",   "K+V rho", "K halves", "V halves",
                  "K seeds",   "V seeds", "seconds"};
  for (const EstimatorRow& row : BestFirst(comparison.rows)) {
    const auto range = [](const RankAgreement& side) {
      return absl::StrCat(Rounded(side.spearman_low), "..",
                          Rounded(side.spearman_high));
    };
    table.rows.push_back({row.name, Rounded(row.key.spearman), range(row.key),
                          Rounded(row.key.kendall), Rounded(row.value.spearman),
                          range(row.value), Rounded(row.value.kendall),
                          Rounded(row.spearman_all), Rounded(row.key.halves),
                          Rounded(row.value.halves), Rounded(row.key.seeds),
                          Rounded(row.value.seeds),
                          absl::StrFormat("%.2f", row.seconds)});
  }
  return table;
}

Table FullComparisonTable(const Comparison& comparison) {
  Table table;
  table.header = {"estimator", "unit", "seconds", "spearman_all"};
  for (const char* side : {"key", "value"}) {
    for (const char* figure : {"spearman", "spearman_low", "spearman_high",
                               "kendall", "halves", "seeds"})
      table.header.push_back(absl::StrCat(side, "_", figure));
  }
  for (const EstimatorRow& row : comparison.rows) {
    std::vector<std::string> cells = {row.name, row.unit, Exact(row.seconds),
                                      Exact(row.spearman_all)};
    for (const RankAgreement* side : {&row.key, &row.value}) {
      for (double x : {side->spearman, side->spearman_low, side->spearman_high,
                       side->kendall, side->halves, side->seeds})
        cells.push_back(Exact(x));
    }
    table.rows.push_back(std::move(cells));
  }
  return table;
}

std::string ComparisonSvg(const Comparison& comparison,
                          const std::string& title) {
  constexpr svg::Frame kPlot = {
      .left = 64, .top = 40, .right = 584, .bottom = 400};
  constexpr int kWidth = 960, kLegendX = 614;
  const std::vector<EstimatorRow> rows = BestFirst(comparison.rows);
  // What looks at no prompt costs nothing: a hundredth of the forward passes
  // stands for it.
  const double least = std::max(1e-3, comparison.forward_seconds / 100);
  std::vector<double> seconds = {least}, correlations = {-1, 1};
  for (const EstimatorRow& row : rows)
    seconds.push_back(std::max(row.seconds, least));
  const svg::Axis x(seconds, kPlot.left, kPlot.right,
                    svg::Axis::Scale::kLogarithmic);
  const svg::Axis y(correlations, kPlot.bottom, kPlot.top);
  std::string picture = svg::Grid(kPlot, x, y, " s");
  picture += svg::Text(kPlot.left, kPlot.top - 14, title);
  picture += svg::Text(kPlot.right, kPlot.bottom + 34,
                       "cost, seconds for all prompts", svg::Anchor::kEnd);
  picture +=
      svg::Text(kLegendX + 230, kPlot.top - 14, "K dot", svg::Anchor::kEnd, 11);
  picture += svg::Text(kLegendX + 300, kPlot.top - 14, "V ring",
                       svg::Anchor::kEnd, 11);
  for (size_t i = 0; i < rows.size(); ++i) {
    const EstimatorRow& row = rows[i];
    const char* color = svg::Color(static_cast<int>(i));
    const double at = x.Position(std::max(row.seconds, least));
    for (const auto& [side, shift] :
         {std::pair(&row.key, -3.0), std::pair(&row.value, 3.0)}) {
      picture += svg::Line(at + shift, y.Position(side->spearman_low),
                           at + shift, y.Position(side->spearman_high), color);
    }
    picture += svg::Dot(at - 3, y.Position(row.key.spearman), color,
                        row.name + ", keys");
    picture += svg::Ring(at + 3, y.Position(row.value.spearman), color,
                         row.name + ", values");
    const double line = kPlot.top + 6 + 17 * static_cast<double>(i);
    picture += svg::Dot(kLegendX, line, color, row.name);
    picture +=
        svg::Text(kLegendX + 14, line + 4, row.name, svg::Anchor::kStart, 11);
    picture += svg::Text(kLegendX + 230, line + 4, Rounded(row.key.spearman),
                         svg::Anchor::kEnd, 11);
    picture += svg::Text(kLegendX + 300, line + 4, Rounded(row.value.spearman),
                         svg::Anchor::kEnd, 11);
  }
  const int height =
      std::max(460, static_cast<int>(kPlot.top + 17 * rows.size() + 30));
  return svg::Document(kWidth, height, picture);
}

}  // namespace kvmix
