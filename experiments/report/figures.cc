#include "experiments/report/figures.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "experiments/report/measures.h"
#include "experiments/report/plot.h"

namespace kvmix {
namespace {

constexpr double kGiga = 1e9;
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

std::string Exact(double value) { return absl::StrFormat("%.10g", value); }
std::string Short(double value) { return absl::StrFormat("%.4g", value); }

// For names of files and links.
std::string Id(std::string name) {
  for (char& c : name) {
    if (!absl::ascii_isalnum(c)) c = '_';
  }
  return name;
}

std::string RunCommand(const ReportedRun& run) {
  return absl::StrCat("kvmix run ", run.folder, "/config.textproto");
}

std::string CommandOf(const RunGroup& group) {
  return group.runs[0]->sweep.empty()
             ? RunCommand(*group.runs[0])
             : absl::StrCat("kvmix sweep, cells in ",
                            group.runs[0]->folder.substr(
                                0, group.runs[0]->folder.rfind("/cells/")));
}

// A method of a run, by a name that tells it from all of its group.
struct Row {
  const ReportedRun* run;
  const MethodRecord* method;
  std::string name;
  int style;  // of the group, in every plot
};

std::vector<Row> RowsOf(const RunGroup& group) {
  std::vector<Row> rows;
  for (RunGroup::Row& row : group.Rows()) {
    rows.push_back({row.run, &row.run->record.method(row.method),
                    std::move(row.name), static_cast<int>(rows.size())});
  }
  return rows;
}

bool IsFullPrecision(const Row& row) {
  return row.method == &row.run->record.method(0);
}

const DatasetRecord& First(const Row& row) { return row.method->dataset(0); }

// Value of a dataset that a plot's y axis shows; NaN: none.
struct YValue {
  std::string label;
  double (*value)(const DatasetRecord&);
  double (*error)(const DatasetRecord&);
};

// The measures that a dataset is plotted by.
std::vector<YValue> YValues(const DatasetRecord& dataset) {
  std::vector<YValue> values;
  if (dataset.quality().tokens() > 0) {
    values.push_back(
        {"KL mean, nats per token",
         [](const DatasetRecord& d) {
           return d.quality().kl_mean() > 0 ? d.quality().kl_mean() : kNone;
         },
         [](const DatasetRecord& d) { return d.quality().kl_stderr(); }});
    values.push_back(
        {"perplexity",
         [](const DatasetRecord& d) { return d.quality().perplexity(); },
         // Paired with full precision: the texts' own spread is not the
         // method's.
         [](const DatasetRecord& d) {
           return d.quality().perplexity() *
                  d.quality().nll_difference_stderr();
         }});
  }
  const Judged judged = Judge(dataset);
  if (!judged.loss) {
    values.push_back(
        {absl::StrCat(judged.name, ", loss of score against full precision"),
         [](const DatasetRecord& d) { return -Judge(d).difference.value; },
         [](const DatasetRecord& d) { return Judge(d).difference.error; }});
  }
  return values;
}

void AddPareto(const RunGroup& group, std::vector<Figure>& figures) {
  const std::vector<Row> rows = RowsOf(group);
  if (rows.size() < 2) return;
  for (int d = 0; d < rows[0].method->dataset_size(); ++d) {
    const DatasetRecord& dataset = rows[0].method->dataset(d);
    for (const YValue& y : YValues(dataset)) {
      plot::XyPlot plot = {.x_label = "bits of an element, whole cache",
                           .y_label = y.label};
      Table data;
      data.header = {"method", "bits", y.label, "standard error"};
      for (const Row& row : rows) {
        if (d >= row.method->dataset_size()) continue;
        const DatasetRecord& own = row.method->dataset(d);
        const double value = y.value(own), error = y.error(own);
        if (std::isnan(value)) continue;
        const double bits = WholeBits(own.memory());
        plot.series.push_back(
            {.name = row.name,
             .points = {{bits, value, error,
                         absl::StrFormat("%s: %.2f bits, %s %s ± %s", row.name,
                                         bits, y.label, Short(value),
                                         Short(error))}},
             .style = row.style});
        data.rows.push_back(
            {row.name, Exact(bits), Exact(value), Exact(error)});
      }
      if (plot.series.size() < 2) continue;
      plot.series.push_back(plot::LowerLeftFront(plot.series));
      const std::string title =
          absl::StrCat(group.name, ": ", y.label, " on ", dataset.name());
      figures.push_back(
          {.id = Id(absl::StrCat("pareto ", title)),
           .title = title,
           .caption = absl::StrCat(
               "Lower left is better; the line joins what nothing beats. ",
               rows[0].run->record.mode(), ", ", Judge(dataset).samples,
               " samples. Bars: standard error, paired with full "
               "precision."),
           .svg = Draw(plot),
           .data = std::move(data),
           .command = CommandOf(group)});
    }
  }
}

// Mean of the scores of a method's datasets that have one.
Measured MeanScore(const MethodRecord& method) {
  Measured mean;
  int scores = 0;
  for (const DatasetRecord& dataset : method.dataset()) {
    const Judged judged = Judge(dataset);
    if (judged.loss) continue;
    ++scores;
    mean.value += judged.value.value;
    mean.error += judged.value.error * judged.value.error;
  }
  return {.value = mean.value / scores,
          .error = std::sqrt(mean.error) / scores};
}

// Whether scores rank methods as divergence does.
void AddScoreAgainstKl(const RunGroup& group, std::vector<Figure>& figures) {
  plot::XyPlot plot = {.x_label = "mean score",
                       .y_label = "KL mean, nats per token"};
  Table data;
  data.header = {"method", "mean score", "standard error", "KL mean"};
  std::vector<double> scores, divergences;
  for (const Row& row : RowsOf(group)) {
    int scored = 0;
    for (const DatasetRecord& dataset : row.method->dataset())
      scored += !Judge(dataset).loss;
    const double kl = First(row).quality().kl_mean();
    if (IsFullPrecision(row) || scored == 0 || kl <= 0) continue;
    const Measured score = MeanScore(*row.method);
    scores.push_back(score.value);
    divergences.push_back(kl);
    plot.series.push_back(
        {.name = row.name,
         .points = {{score.value, kl, 0,
                     absl::StrFormat("%s: score %s ± %s, KL %s", row.name,
                                     Short(score.value), Short(score.error),
                                     Short(kl))}},
         .style = row.style});
    data.rows.push_back(
        {row.name, Exact(score.value), Exact(score.error), Exact(kl)});
  }
  if (scores.size() < 4) return;
  const double correlation = RankCorrelation(scores, divergences);
  figures.push_back(
      {.id = Id("scores and KL " + group.name),
       .title = absl::StrCat(group.name, ": mean score and KL on ",
                             First(RowsOf(group)[0]).name()),
       .caption = absl::StrCat(
           "Mean over the datasets that have a score. ",
           std::isnan(correlation)
               ? "All scores are the same: they rank nothing."
               : absl::StrFormat("Spearman's rank correlation of score and KL "
                                 "over these %d methods: %.2f.",
                                 scores.size(), correlation)),
       .svg = Draw(plot),
       .data = std::move(data),
       .command = CommandOf(group)});
}

// Profiles of all runs, each once.
std::vector<const StoredProfile*> Profiles(const ReportInput& input,
                                           const std::string& model) {
  std::vector<const StoredProfile*> profiles;
  std::set<std::string> keys;
  for (const ReportedRun& run : input.runs) {
    for (const StoredProfile& profile : run.profiles) {
      if (profile.model() == model && keys.insert(profile.key()).second)
        profiles.push_back(&profile);
    }
  }
  return profiles;
}

std::string ProfileName(const StoredProfile& profile) {
  return absl::StrCat(profile.profile().estimator(), " (",
                      profile.profile().num_prompts(), " prompts, seed ",
                      profile.seed(), ", ", profile.key().substr(0, 4), ")");
}

void AddImportance(const std::vector<const StoredProfile*>& profiles,
                   const std::string& model, std::vector<Figure>& figures) {
  constexpr size_t kMost = 8;  // more bars cannot be told apart
  for (bool key : {true, false}) {
    plot::BarPlot plot = {.y_label = "share of the sum over layers"};
    Table data;
    data.header = {"estimator", "layer", "score", "standard error"};
    for (size_t p = 0; p < std::min(profiles.size(), kMost); ++p) {
      const ImportanceProfile& profile = profiles[p]->profile();
      double sum = 0;
      for (const LayerImportance& layer : profile.layer())
        sum += key ? layer.key() : layer.value();
      plot::BarPlot::Bars bars = {.name = ProfileName(*profiles[p])};
      for (int i = 0; i < profile.layer_size(); ++i) {
        const LayerImportance& layer = profile.layer(i);
        const double score = key ? layer.key() : layer.value();
        const double error = key ? layer.key_stderr() : layer.value_stderr();
        bars.values.push_back(sum > 0 ? score / sum : 0);
        bars.errors.push_back(sum > 0 ? error / sum : 0);
        data.rows.push_back(
            {bars.name, absl::StrCat(i), Exact(score), Exact(error)});
        if (p == 0) plot.labels.push_back(absl::StrCat(i));
      }
      plot.series.push_back(std::move(bars));
    }
    const std::string what = key ? "keys" : "values";
    figures.push_back(
        {.id = Id(absl::StrCat("importance ", what, " ", model)),
         .title =
             absl::StrCat("Importance of each layer's ", what, ", ", model),
         .caption = absl::StrCat(
             "By layer; scores of an estimator add up to 1. Bars: standard "
             "error over prompts.",
             profiles.size() > kMost ? " The first eight profiles." : ""),
         .svg = Draw(plot),
         .data = std::move(data),
         .command = "kvmix profile --config=CONFIG"});
  }
}

std::vector<double> Scores(const StoredProfile& profile, bool key) {
  std::vector<double> scores;
  for (const LayerImportance& layer : profile.profile().layer())
    scores.push_back(key ? layer.key() : layer.value());
  return scores;
}

// Over layers, mean of keys and values: scores of the two need not have the
// same scale.
double AgreementOf(const StoredProfile& a, const StoredProfile& b) {
  if (a.profile().layer_size() != b.profile().layer_size()) return kNone;
  return 0.5 * (RankCorrelation(Scores(a, true), Scores(b, true)) +
                RankCorrelation(Scores(a, false), Scores(b, false)));
}

void AddAgreement(const std::vector<const StoredProfile*>& profiles,
                  const std::string& model, std::vector<Figure>& figures) {
  if (profiles.size() < 2) return;
  const int digits = profiles.size() > 12 ? 1 : 2;  // what a cell has room for
  plot::HeatMap map = {.x_label =
                           "Spearman's rank correlation over layers, "
                           "mean of keys and values",
                       .y_label = "",
                       .low = 0,
                       .high = 1};
  Table data;
  data.header = {"estimator", "other", "rank correlation"};
  for (size_t i = 0; i < profiles.size(); ++i) {
    map.rows.push_back(ProfileName(*profiles[i]));
    map.columns.push_back(absl::StrCat(i + 1));
    map.values.emplace_back();
    map.texts.emplace_back();
    for (const StoredProfile* other : profiles) {
      const double value = AgreementOf(*profiles[i], *other);
      map.values.back().push_back(value);
      map.texts.back().push_back(absl::StrFormat("%.*f", digits, value));
      data.rows.push_back({map.rows.back(), ProfileName(*other), Exact(value)});
    }
  }
  figures.push_back({.id = Id("agreement " + model),
                     .title = "How estimators agree, " + model,
                     .caption = "Columns are in the order of the rows.",
                     .svg = Draw(map),
                     .data = std::move(data),
                     .command = "kvmix profile --config=CONFIG"});
}

void AddBitMap(const RunGroup& group, std::vector<Figure>& figures) {
  plot::HeatMap map = {.x_label = "layer", .y_label = "", .low = 0, .high = 8};
  Table data;
  data.header = {"method", "side", "layer", "bits"};
  std::set<std::string> seen;
  for (const Row& row : RowsOf(group)) {
    if (IsFullPrecision(row)) continue;
    for (bool key : {true, false}) {
      std::vector<double> bits;
      std::vector<std::string> texts;
      for (const LayerPlan& layer : row.method->plan().layer()) {
        bits.push_back(MeanBits(layer, key ? Side::kKey : Side::kValue));
        texts.push_back(absl::StrFormat("%.3g", bits.back()));
      }
      const std::string name = absl::StrCat(row.name, key ? " K" : " V");
      for (size_t i = 0; i < bits.size(); ++i) {
        data.rows.push_back(
            {row.name, key ? "key" : "value", absl::StrCat(i), texts[i]});
      }
      map.rows.push_back(name);
      map.values.push_back(std::move(bits));
      map.texts.push_back(std::move(texts));
    }
  }
  if (map.rows.empty()) return;
  size_t layers = 0;
  for (const auto& row : map.values) layers = std::max(layers, row.size());
  for (size_t i = 0; i < layers; ++i) map.columns.push_back(absl::StrCat(i));
  for (size_t r = 0; r < map.values.size(); ++r) {
    map.values[r].resize(layers, kNone);
    map.texts[r].resize(layers);
  }
  figures.push_back(
      {.id = Id("bits " + group.name),
       .title = absl::StrCat(group.name, ": bits of every layer, ",
                             group.runs[0]->record.model().path()),
       .caption =
           "Nominal bits of keys (K) and values (V); where KV heads have "
           "bits of their own, their mean.",
       .svg = Draw(map),
       .data = std::move(data),
       .command = CommandOf(group)});
}

void AddMemory(const RunGroup& group, std::vector<Figure>& figures) {
  static constexpr struct {
    const char* name;
    double (SideBytes::*bytes)() const;
  } kCauses[] = {{"codes", &SideBytes::codes},
                 {"scales", &SideBytes::scales},
                 {"zero points", &SideBytes::zeros},
                 {"side data", &SideBytes::side_data},
                 {"sinks, full precision", &SideBytes::sinks},
                 {"window, full precision", &SideBytes::window},
                 {"slack", &SideBytes::slack}};
  const std::vector<Row> rows = RowsOf(group);
  if (rows.size() > 24) return;
  plot::BarPlot plot = {.y_label = "KiB, mean over windows", .stacked = true};
  Table data;
  data.header = {"method", "cause", "bytes"};
  for (const Row& row : rows) plot.labels.push_back(row.name);
  const auto add = [&](const std::string& name, auto bytes_of) {
    plot::BarPlot::Bars bars = {.name = name};
    for (const Row& row : rows) {
      const double bytes = bytes_of(First(row).memory());
      bars.values.push_back(bytes / 1024);
      data.rows.push_back({row.name, name, Exact(bytes)});
    }
    plot.series.push_back(std::move(bars));
  };
  for (const auto& cause : kCauses) {
    add(cause.name, [&](const Memory& memory) {
      return (memory.key().*cause.bytes)() + (memory.value().*cause.bytes)();
    });
  }
  add("bookkeeping", [](const Memory& memory) { return memory.bookkeeping(); });
  figures.push_back(
      {.id = Id("memory " + group.name),
       .title = absl::StrCat(group.name, ": memory of the cache by cause, ",
                             First(rows[0]).name()),
       .caption = "Keys and values together, at the end of a window.",
       .svg = Draw(plot),
       .data = std::move(data),
       .command = CommandOf(group)});
}

// A measure of a method against something that varies within the group.
struct AgainstValue {
  std::string label;
  double (*value)(const Row&);
  double (*error)(const Row&);
};

std::vector<AgainstValue> AgainstValues(const RunGroup& group) {
  std::vector<AgainstValue> values = {
      {"KL mean, nats per token",
       [](const Row& r) { return First(r).quality().kl_mean(); },
       [](const Row& r) { return First(r).quality().kl_stderr(); }},
      {"loss in nats against full precision",
       [](const Row& r) { return First(r).quality().nll_difference(); },
       [](const Row& r) { return First(r).quality().nll_difference_stderr(); }},
      {"compression of the whole cache",
       [](const Row& r) { return First(r).memory().compression(); },
       [](const Row&) { return 0.0; }}};
  if (group.runs[0]->timings.speed_size() > 0) {
    values.push_back(
        {"decode tokens per second",
         [](const Row& r) {
           const MethodSpeed* s = SpeedOf(*r.run, r.method->name());
           return s == nullptr ? kNone : s->decode();
         },
         [](const Row& r) {
           const MethodSpeed* s = SpeedOf(*r.run, r.method->name());
           return s == nullptr ? 0 : (s->decode_high() - s->decode_low()) / 2;
         }});
  }
  return values;
}

// The method, and where its cell lies on all axes but one.
std::string LineName(const Row& row, size_t axis) {
  std::string name = row.method->name();
  for (size_t i = 0; i < row.run->settings.size(); ++i) {
    if (i != axis) {
      absl::StrAppend(&name, " ", row.run->settings[i].first, "=",
                      row.run->settings[i].second);
    }
  }
  return name;
}

// One line for each name over x; points without x are left out.
template <typename XOf, typename NameOf>
void AddAgainst(const RunGroup& group, const std::string& x_label, XOf x_of,
                NameOf name_of, std::vector<Figure>& figures) {
  for (const AgainstValue& y : AgainstValues(group)) {
    std::map<std::string, plot::Series> series;
    Table data;
    data.header = {"method", x_label, y.label, "standard error"};
    for (const Row& row : RowsOf(group)) {
      const double x = x_of(row), value = y.value(row), error = y.error(row);
      if (std::isnan(x) || std::isnan(value)) continue;
      const std::string name = name_of(row);
      plot::Series& line = series[name];
      line.name = name;
      line.line = true;
      line.points.push_back(
          {x, value, error,
           absl::StrFormat("%s: %s = %s ± %s", row.name, y.label, Short(value),
                           Short(error))});
      data.rows.push_back({name, Exact(x), Exact(value), Exact(error)});
    }
    std::set<double> places;
    plot::XyPlot plot = {.x_label = x_label, .y_label = y.label};
    for (auto& [name, line] : series) {
      for (const plot::Point& point : line.points) places.insert(point.x);
      plot.series.push_back(std::move(line));
    }
    if (places.size() < 2) continue;
    const std::string title =
        absl::StrCat(group.name, ": ", y.label, " against ", x_label);
    figures.push_back(
        {.id = Id(title),
         .title = title,
         .caption = absl::StrCat("Dataset ", First(RowsOf(group)[0]).name(),
                                 ", ", group.runs[0]->record.mode(), "."),
         .svg = Draw(plot),
         .data = std::move(data),
         .command = CommandOf(group)});
  }
}

double AxisValue(const Row& row, size_t axis) {
  double value;
  if (axis >= row.run->settings.size() || IsFullPrecision(row) ||
      !absl::SimpleAtod(row.run->settings[axis].second, &value))
    return kNone;
  return value;
}

void AddAxes(const RunGroup& group, std::vector<Figure>& figures) {
  for (size_t axis = 0; axis < group.runs[0]->settings.size(); ++axis) {
    const std::string& name = group.runs[0]->settings[axis].first;
    if (name == "seed") continue;  // no quantity
    AddAgainst(
        group, name, [&](const Row& row) { return AxisValue(row, axis); },
        [&](const Row& row) { return LineName(row, axis); }, figures);
  }
  const std::vector<Row> rows = RowsOf(group);
  LowestBits lowest;
  for (const Row& row : rows)
    if (!IsFullPrecision(row)) lowest.Include(row.method->plan());
  const auto share_of = [&](const Row& row) {
    return IsFullPrecision(row)
               ? kNone
               : ShareOfHighBitLayers(row.method->plan(), lowest);
  };
  std::set<double> shares;
  for (const Row& row : rows)
    if (!IsFullPrecision(row)) shares.insert(share_of(row));
  if (group.runs[0]->sweep.empty() || shares.size() < 3) return;
  AddAgainst(
      group, "share of high-bit layers", share_of,
      [](const Row& row) { return row.method->name(); }, figures);
}

void AddPositions(const RunGroup& group, std::vector<Figure>& figures) {
  const std::vector<Row> rows = RowsOf(group);
  for (int d = 0; d < rows[0].method->dataset_size(); ++d) {
    plot::XyPlot plot = {.x_label = "token of the window",
                         .y_label = "KL mean, nats per token",
                         .from_zero = true};
    Table data;
    data.header = {"method", "begin", "end", "KL mean", "standard error"};
    const std::string dataset = rows[0].method->dataset(d).name();
    for (const Row& row : rows) {
      if (IsFullPrecision(row) || d >= row.method->dataset_size()) continue;
      plot::Series line = {.name = row.name, .line = true, .style = row.style};
      for (const PositionRecord& at : row.method->dataset(d).position()) {
        const double middle = (at.begin() + at.end()) / 2.0;
        line.points.push_back(
            {middle, at.kl_mean(), at.kl_stderr(),
             absl::StrFormat("%s, tokens %d to %d: KL %s ± %s", row.name,
                             at.begin(), at.end() - 1, Short(at.kl_mean()),
                             Short(at.kl_stderr()))});
        data.rows.push_back({row.name, absl::StrCat(at.begin()),
                             absl::StrCat(at.end()), Exact(at.kl_mean()),
                             Exact(at.kl_stderr())});
      }
      if (line.points.size() > 1) plot.series.push_back(std::move(line));
    }
    if (plot.series.empty() || plot.series.size() > 16) continue;
    figures.push_back(
        {.id = Id(absl::StrCat("position ", group.name, " ", dataset)),
         .title = absl::StrCat(group.name, ": error over tokens of ", dataset,
                               ", ", group.runs[0]->record.mode()),
         .caption = "How error grows with what the cache holds; in STEPWISE "
                    "and after an EXACT_PREFILL every token is a decode step. "
                    "Bars: standard error over windows.",
         .svg = Draw(plot),
         .data = std::move(data),
         .command = CommandOf(group)});
  }
}

void AddPlaces(const RunGroup& group, std::vector<Figure>& figures) {
  for (const Row& row : RowsOf(group)) {
    for (const DatasetRecord& dataset : row.method->dataset()) {
      if (dataset.place().empty()) continue;
      std::set<double> depths;
      std::set<int> lengths;
      std::map<std::pair<double, int>, double> accuracy;
      Table data;
      data.header = {"depth", "tokens", "answers", "accuracy", "NLL"};
      for (const PlaceRecord& place : dataset.place()) {
        depths.insert(place.depth());
        lengths.insert(place.tokens());
        accuracy[{place.depth(), place.tokens()}] = place.accuracy();
        data.rows.push_back({Exact(place.depth()), absl::StrCat(place.tokens()),
                             absl::StrCat(place.answers()),
                             Exact(place.accuracy()), Exact(place.nll())});
      }
      plot::HeatMap map = {.x_label = "tokens of the context",
                           .y_label = "depth"};
      for (int length : lengths) map.columns.push_back(absl::StrCat(length));
      for (double depth : depths) {
        map.rows.push_back(absl::StrFormat("%.0f %%", 100 * depth));
        map.values.emplace_back();
        map.texts.emplace_back();
        for (int length : lengths) {
          const auto at = accuracy.find({depth, length});
          const double value = at == accuracy.end() ? kNone : at->second;
          map.values.back().push_back(value);
          map.texts.back().push_back(
              std::isnan(value) ? "" : absl::StrFormat("%.0f", 100 * value));
        }
      }
      figures.push_back(
          {.id = Id(
               absl::StrCat("needle ", group.name, row.name, dataset.name())),
           .title =
               absl::StrCat(group.name, ": ", dataset.name(), ", ", row.name),
           .caption = "Per cent of needles found, by depth in the context and "
                      "its length.",
           .svg = Draw(map),
           .data = std::move(data),
           .command = CommandOf(group)});
    }
  }
}

// What a group of prompts lost: the task's score, or else the divergence.
Measured GroupLoss(const TaskQuality* task, const Quality& quality) {
  if (task == nullptr)
    return {.value = quality.kl_mean(), .error = quality.kl_stderr()};
  return {.value = -task->score_difference(),
          .error = task->score_difference_stderr()};
}

void AddGroups(const RunGroup& group, std::vector<Figure>& figures) {
  const std::vector<Row> rows = RowsOf(group);
  for (int d = 0; d < rows[0].method->dataset_size(); ++d) {
    const DatasetRecord& full = rows[0].method->dataset(d);
    if (full.group().empty()) continue;
    plot::BarPlot plot = {.y_label = full.has_task()
                                         ? absl::StrCat(full.task().metric(),
                                                        ", loss against full "
                                                        "precision")
                                         : "KL mean, nats per token"};
    Table data;
    data.header = {"method", "group", plot.y_label, "standard error"};
    for (const GroupRecord& label : full.group())
      plot.labels.push_back(label.name());
    plot.labels.push_back("mean");
    for (const Row& row : rows) {
      if (IsFullPrecision(row)) continue;
      const DatasetRecord& own = row.method->dataset(d);
      plot::BarPlot::Bars bars = {.name = row.name, .style = row.style};
      const auto add = [&](const std::string& name, const Measured& loss) {
        bars.values.push_back(loss.value);
        bars.errors.push_back(loss.error);
        data.rows.push_back(
            {row.name, name, Exact(loss.value), Exact(loss.error)});
      };
      for (const GroupRecord& label : own.group()) {
        add(label.name(), GroupLoss(label.has_task() ? &label.task() : nullptr,
                                    label.quality()));
      }
      add("mean",
          GroupLoss(own.has_task() ? &own.task() : nullptr, own.quality()));
      plot.series.push_back(std::move(bars));
    }
    if (plot.series.empty()) continue;
    figures.push_back(
        {.id = Id(absl::StrCat("groups ", group.name, " ", full.name())),
         .title = absl::StrCat(group.name, ": groups of ", full.name()),
         .caption = "Error of each group of prompts beside their mean: what a "
                    "mean can hide.",
         .svg = Draw(plot),
         .data = std::move(data),
         .command = CommandOf(group)});
  }
}

// What of a row of a benchmark is drawn against its batch.
struct BatchSpeed {
  std::string title, y_label;
  double value = 0, low = 0, high = 0;
};

BatchSpeed SpeedOf(const ReportedBench& row) {
  const std::string where =
      row.threads > 0 ? absl::StrCat(row.threads, " threads") : row.device;
  if (row.throughput > 0) {
    return {
        .title = absl::StrCat("Batches served whole, ", row.model, ", ", where),
        .y_label = "tokens that came out a second, prompts included",
        .value = row.throughput,
        .low = row.throughput_low,
        .high = row.throughput_high};
  }
  return {.title = absl::StrCat("Throughput against batch, ", row.model,
                                ", depth ", row.depth, ", ", where),
          .y_label = "decode tok/s, whole batch",
          .value = row.decode,
          .low = row.decode_low,
          .high = row.decode_high};
}

void AddThroughput(const std::vector<ReportedBench>& bench,
                   std::vector<Figure>& figures) {
  std::map<std::string, std::vector<const ReportedBench*>> by_title;
  for (const ReportedBench& row : bench)
    by_title[SpeedOf(row).title].push_back(&row);
  for (const auto& [title, rows] : by_title) {
    plot::XyPlot plot = {.x_label = "batch",
                         .y_label = SpeedOf(*rows[0]).y_label};
    std::map<std::string, plot::Series> series;
    std::set<int64_t> batches;
    Table data;
    data.header = {"kv",     "batch",   "tokens per second",
                   "lowest", "highest", "cache bytes"};
    for (const ReportedBench* row : rows) {
      const BatchSpeed speed = SpeedOf(*row);
      plot::Series& line = series[row->kv];
      line.name = row->kv;
      line.line = true;
      batches.insert(row->batch);
      line.points.push_back(
          {static_cast<double>(row->batch), speed.value,
           (speed.high - speed.low) / 2,
           absl::StrFormat("%s, batch %d: %s tok/s, caches %.1f MiB", row->kv,
                           row->batch, Short(speed.value),
                           row->cache_bytes / (1 << 20))});
      data.rows.push_back({row->kv, absl::StrCat(row->batch),
                           Exact(speed.value), Exact(speed.low),
                           Exact(speed.high), Exact(row->cache_bytes)});
    }
    if (batches.size() < 2) continue;
    for (auto& [name, line] : series) plot.series.push_back(std::move(line));
    figures.push_back(
        {.id = Id(absl::StrCat("throughput ", title)),
         .title = title,
         .caption = rows[0]->throughput > 0
                        ? "Prompts and decode steps of whole batches; with "
                          "--batch=max a line ends where memory is full."
                        : "Medians; bars: half of lowest to highest.",
         .svg = Draw(plot),
         .data = std::move(data),
         .command = rows[0]->command});
  }
}

void AddMagnitudes(const MagnitudeRecord& record,
                   std::vector<Figure>& figures) {
  for (bool key : {true, false}) {
    plot::HeatMap map = {.x_label = "channel (of all KV heads)",
                         .y_label = "layer",
                         .low = 0,
                         .high = 0};
    Table data;
    data.header = {"layer", "channel", "mean magnitude"};
    for (int i = 0; i < record.layer_size(); ++i) {
      const auto& channels =
          key ? record.layer(i).key() : record.layer(i).value();
      map.rows.push_back(absl::StrCat(i));
      map.values.emplace_back(channels.begin(), channels.end());
      for (int c = 0; c < channels.size(); ++c) {
        map.high = std::max(map.high, channels[c]);
        data.rows.push_back(
            {absl::StrCat(i), absl::StrCat(c), Exact(channels[c])});
      }
    }
    if (map.rows.empty()) continue;
    for (size_t c = 0; c < map.values[0].size(); ++c)
      map.columns.push_back(absl::StrCat(c));
    const std::string what = key ? "keys" : "values";
    figures.push_back(
        {.id = Id(absl::StrCat("magnitudes ", what, record.model())),
         .title =
             absl::StrCat("Mean magnitude of ", what, ", ", record.model()),
         .caption = absl::StrFormat(
             "By layer and channel, from 0 (faint) to %s (strong). Columns "
             "that "
             "stand out are the outlier channels for which keys are quantized "
             "per channel.",
             Short(map.high)),
         .svg = Draw(map),
         .data = std::move(data),
         .command = "kvmix magnitudes --config=CONFIG"});
  }
}

// All three indicators of a run stand before what lacks the second.
std::vector<const ReportedRun*> TimedFirst(
    const std::vector<ReportedRun>& runs) {
  std::vector<const ReportedRun*> order;
  for (const ReportedRun& run : runs) order.push_back(&run);
  std::stable_partition(order.begin(), order.end(), [](const ReportedRun* run) {
    return run->timings.speed_size() > 0;
  });
  return order;
}

}  // namespace

Table IndicatorTable(const ReportInput& input) {
  Table table;
  table.header = {"experiment", "method",  "memory",  "decode",
                  "prefill",    "dataset", "samples", "change of quality",
                  "quality"};
  for (const ReportedRun* shown : TimedFirst(input.runs)) {
    const ReportedRun& run = *shown;
    const MethodSpeed* full = SpeedOf(run, run.record.method(0).name());
    for (int m = 1; m < run.record.method_size(); ++m) {
      const MethodRecord& method = run.record.method(m);
      const MethodSpeed* own = SpeedOf(run, method.name());
      const bool timed = full != nullptr && own != nullptr;
      for (const DatasetRecord& dataset : method.dataset()) {
        const Judged judged = Judge(dataset);
        table.rows.push_back(
            {run.Name(), method.name(),
             absl::StrFormat("%.2fx", dataset.memory().compression()),
             timed ? absl::StrFormat("%.2fx", own->decode() / full->decode())
                   : "-",
             timed ? absl::StrFormat("%.2fx", own->prefill() / full->prefill())
                   : "-",
             dataset.name(), absl::StrCat(judged.samples),
             judged.loss ? WithError(judged.difference, 4, true) + " nats"
                         : WithError({100 * judged.difference.value,
                                      100 * judged.difference.error},
                                     1, true) +
                               " points",
             judged.loss ? absl::StrFormat("NLL %.4f", judged.value.value)
                         : absl::StrFormat("%s %.1f %%", judged.name,
                                           100 * judged.value.value)});
      }
    }
  }
  return table;
}

Table CapacityTable(const ReportInput& input) {
  Table table;
  table.header = {"model", "method", "bits"};
  constexpr int kSizes[] = {8, 12, 16, 24, 48, 80};
  for (int gb : kSizes)
    table.header.push_back(absl::StrCat(gb, " GB: tokens / batch"));
  if (input.runs.empty()) return table;
  // The run with most methods speaks for the methods.
  const ReportedRun* run = &input.runs[0];
  for (const ReportedRun& other : input.runs) {
    if (other.record.method_size() > run->record.method_size()) run = &other;
  }
  const ModelRecord& own = run->record.model();
  const std::vector<CapacityShape> shapes = {
      {own.path(), own.num_layers(), own.num_kv_heads(), own.head_dim(),
       static_cast<double>(own.weight_bytes())},
      {"Llama-3.1-8B, fp16", 32, 8, 128, 16.06e9},
      {"Llama-2-7B, fp16", 32, 32, 128, 13.48e9}};
  constexpr double kBatchTokens = 4096;
  for (const CapacityShape& shape : shapes) {
    const double elements =
        2.0 * shape.num_layers * shape.num_kv_heads * shape.head_dim;
    for (const MethodRecord& method : run->record.method()) {
      const double bits = WholeBits(method.dataset(0).memory());
      const double token_bytes = elements * bits / 8;
      std::vector<std::string> row = {shape.name, method.name(),
                                      absl::StrFormat("%.2f", bits)};
      for (int gb : kSizes) {
        const double room = gb * kGiga - shape.weight_bytes;
        const double tokens = std::floor(std::max(room, 0.0) / token_bytes);
        row.push_back(tokens < 1
                          ? "weights do not fit"
                          : absl::StrFormat("%.0f / %.0f", tokens,
                                            std::floor(tokens / kBatchTokens)));
      }
      table.rows.push_back(std::move(row));
    }
  }
  return table;
}

std::vector<Figure> MakeFigures(const ReportInput& input) {
  std::vector<Figure> figures;
  const std::vector<RunGroup> groups = GroupRuns(input);
  for (const RunGroup& group : groups) AddPareto(group, figures);
  for (const RunGroup& group : groups) AddScoreAgainstKl(group, figures);
  for (const RunGroup& group : groups) AddAxes(group, figures);
  for (const RunGroup& group : groups) AddMemory(group, figures);
  for (const RunGroup& group : groups) AddBitMap(group, figures);
  for (const RunGroup& group : groups) AddPositions(group, figures);
  for (const RunGroup& group : groups) AddPlaces(group, figures);
  for (const RunGroup& group : groups) AddGroups(group, figures);
  std::map<std::string, std::string> models;  // fingerprint -> path
  for (const ReportedRun& run : input.runs)
    models.emplace(run.record.model().fingerprint(), run.record.model().path());
  for (const auto& [fingerprint, path] : models) {
    const std::vector<const StoredProfile*> profiles =
        Profiles(input, fingerprint);
    if (profiles.empty()) continue;
    AddImportance(profiles, path, figures);
    AddAgreement(profiles, path, figures);
  }
  AddThroughput(input.bench, figures);
  for (const MagnitudeRecord& record : input.magnitudes)
    AddMagnitudes(record, figures);
  // Two runs of one name must not share files.
  std::map<std::string, int> seen;
  for (Figure& figure : figures) {
    const int count = seen[figure.id]++;
    if (count > 0) absl::StrAppend(&figure.id, "_", count + 1);
  }
  return figures;
}

}  // namespace kvmix
