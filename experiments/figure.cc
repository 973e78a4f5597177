#include "experiments/figure.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace kvmix {
namespace {

constexpr int kWidth = 960;
constexpr int kLeft = 64;  // of the plot's axes
constexpr int kPlotWidth = 520;
constexpr int kPlotTop = 40;
constexpr int kPlotHeight = 300;
constexpr int kLegendX = kLeft + kPlotWidth + 30;
constexpr int kMapTop = kPlotTop + kPlotHeight + 90;
constexpr int kMapLeft = 200;  // of the bit map's cells
constexpr int kRowHeight = 13;

constexpr std::array<const char*, 10> kColors = {
    "#444444", "#1f77b4", "#d62728", "#2ca02c", "#9467bd",
    "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f"};

std::string Escaped(const std::string& text) {
  return absl::StrReplaceAll(
      text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

std::string Text(double x, double y, const std::string& text,
                 const char* anchor = "start", int size = 12) {
  return absl::StrFormat(
      "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" font-size=\"%d\">%s"
      "</text>\n",
      x, y, anchor, size, Escaped(text));
}

std::string Line(double x1, double y1, double x2, double y2,
                 const char* color) {
  return absl::StrFormat(
      "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n",
      x1, y1, x2, y2, color);
}

// An axis over the data's range, with a margin; `logarithmic` where the values
// span more than a factor of three.
class Axis {
 public:
  Axis(const std::vector<double>& values, double from, double to)
      : from_(from), to_(to) {
    low_ = *std::min_element(values.begin(), values.end());
    high_ = *std::max_element(values.begin(), values.end());
    logarithmic_ = low_ > 0 && high_ > 3 * low_;
    low_ = Scaled(low_);
    high_ = Scaled(high_);
    const double margin = std::max(0.08 * (high_ - low_), 1e-3);
    low_ -= margin;
    high_ += margin;
  }

  double Position(double value) const {
    return from_ + (Scaled(value) - low_) / (high_ - low_) * (to_ - from_);
  }

  std::vector<double> Ticks() const {
    std::vector<double> ticks;
    if (logarithmic_) {
      for (int power = static_cast<int>(std::floor(low_)); power <= high_;
           ++power)
        for (double digit : {1.0, 2.0, 5.0})
          Add(ticks, digit * std::pow(10, power));
      return ticks;
    }
    const double rough = (high_ - low_) / 5;
    const double power = std::pow(10, std::floor(std::log10(rough)));
    const double digit = rough / power;
    const double step = power * (digit < 1.5 ? 1
                                 : digit < 3 ? 2
                                 : digit < 7 ? 5
                                             : 10);
    for (double v = std::ceil(low_ / step) * step; v <= high_; v += step)
      Add(ticks, v);
    return ticks;
  }

 private:
  double Scaled(double value) const {
    return logarithmic_ ? std::log10(value) : value;
  }
  void Add(std::vector<double>& ticks, double value) const {
    if (Scaled(value) >= low_ && Scaled(value) <= high_) ticks.push_back(value);
  }

  const double from_, to_;
  double low_, high_;
  bool logarithmic_;
};

const char* Color(int method) { return kColors[method % kColors.size()]; }

// Darker means more bits.
std::string BitColor(int bits) {
  static constexpr std::array<const char*, 9> kShades = {
      "#ffffff", "#fff7ec", "#fee8c8", "#fdbb84", "#ef6548",
      "#d7301f", "#b30000", "#990000", "#7f0000"};
  return bits <= 8 ? kShades[std::max(bits, 0)] : "#3b3b3b";
}

std::string QualityPlot(const RunRecord& record) {
  std::vector<double> compressions, perplexities;
  for (const MethodRecord& method : record.method()) {
    compressions.push_back(method.dataset(0).memory().compression());
    perplexities.push_back(method.dataset(0).quality().perplexity());
  }
  const double right = kLeft + kPlotWidth, bottom = kPlotTop + kPlotHeight;
  const Axis x(compressions, kLeft, right), y(perplexities, bottom, kPlotTop);
  std::string svg;
  for (double tick : x.Ticks()) {
    svg +=
        Line(x.Position(tick), kPlotTop, x.Position(tick), bottom, "#e5e5e5");
    svg += Text(x.Position(tick), bottom + 16, absl::StrFormat("%gx", tick),
                "middle");
  }
  for (double tick : y.Ticks()) {
    svg += Line(kLeft, y.Position(tick), right, y.Position(tick), "#e5e5e5");
    svg += Text(kLeft - 6, y.Position(tick) + 4, absl::StrFormat("%g", tick),
                "end");
  }
  svg += Line(kLeft, bottom, right, bottom, "#444444");
  svg += Line(kLeft, kPlotTop, kLeft, bottom, "#444444");
  svg += Text(kLeft, kPlotTop - 14,
              absl::StrCat("perplexity on ", record.method(0).dataset(0).name(),
                           ", ", record.mode(), " (lower is better)"));
  svg += Text(right, bottom + 34, "compression of the whole cache against fp16",
              "end");
  for (int m = 0; m < record.method_size(); ++m) {
    absl::StrAppendFormat(&svg,
                          "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"6\" fill=\"%s\" "
                          "fill-opacity=\"0.8\"><title>%s</title></circle>\n",
                          x.Position(compressions[m]),
                          y.Position(perplexities[m]), Color(m),
                          Escaped(record.method(m).name()));
    const double line = kPlotTop + 18 * m + 6;
    absl::StrAppendFormat(
        &svg, "<circle cx=\"%d\" cy=\"%.1f\" r=\"6\" fill=\"%s\"/>\n", kLegendX,
        line, Color(m));
    svg += Text(kLegendX + 14, line + 4,
                absl::StrFormat("%s  %.2fx, %.4g", record.method(m).name(),
                                compressions[m], perplexities[m]));
  }
  return svg;
}

std::string BitMap(const RunRecord& record) {
  std::string svg = Text(kMapLeft, kMapTop - 12, "bits of every layer");
  const int num_layers = record.model().num_layers();
  const double cell =
      std::min(24.0, static_cast<double>(kWidth - kMapLeft - 20) / num_layers);
  double y = kMapTop;
  for (const MethodRecord& method : record.method()) {
    svg += Text(kMapLeft - 24, y + kRowHeight + 4, method.name(), "end");
    for (bool key : {true, false}) {
      svg += Text(kMapLeft - 6, y + kRowHeight - 3, key ? "K" : "V", "end", 10);
      for (int layer = 0; layer < method.plan().layer_size(); ++layer) {
        const LayerPlan& plan = method.plan().layer(layer);
        const int bits = key ? plan.key().bits() : plan.value().bits();
        absl::StrAppendFormat(
            &svg,
            "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" "
            "fill=\"%s\" stroke=\"#ffffff\"><title>layer %d %s: %d bits"
            "</title></rect>\n",
            kMapLeft + layer * cell, y, cell, kRowHeight, BitColor(bits), layer,
            key ? "keys" : "values", bits);
      }
      y += kRowHeight;
    }
    y += 8;
  }
  double x = kMapLeft;
  for (int bits : {1, 2, 3, 4, 5, 6, 8, 16}) {
    absl::StrAppendFormat(&svg,
                          "<rect x=\"%.1f\" y=\"%.1f\" width=\"14\" "
                          "height=\"12\" fill=\"%s\" stroke=\"#bbbbbb\"/>\n",
                          x, y + 8, BitColor(bits));
    svg += Text(x + 18, y + 18, absl::StrCat(bits));
    x += 46;
  }
  return svg;
}

}  // namespace

std::string FigureSvg(const RunRecord& record) {
  const int height = kMapTop + record.method_size() * (2 * kRowHeight + 8) + 40;
  return absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
      "viewBox=\"0 0 %d %d\" font-family=\"sans-serif\">\n"
      "<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n%s%s</svg>\n",
      kWidth, height, kWidth, height, QualityPlot(record), BitMap(record));
}

}  // namespace kvmix
