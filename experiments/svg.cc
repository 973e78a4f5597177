#include "experiments/svg.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace kvmix::svg {
namespace {

constexpr char kGridColor[] = "#e5e5e5";
constexpr char kAxisColor[] = "#444444";

const char* AnchorName(Anchor anchor) {
  return anchor == Anchor::kStart    ? "start"
         : anchor == Anchor::kMiddle ? "middle"
                                     : "end";
}

}  // namespace

std::string Escaped(absl::string_view text) {
  return absl::StrReplaceAll(
      text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

std::string Text(double x, double y, absl::string_view text, Anchor anchor,
                 int size) {
  return absl::StrFormat(
      "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" font-size=\"%d\">%s"
      "</text>\n",
      x, y, AnchorName(anchor), size, Escaped(text));
}

std::string Line(double x1, double y1, double x2, double y2,
                 absl::string_view color, double width) {
  return absl::StrFormat(
      "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" "
      "stroke-width=\"%g\"/>\n",
      x1, y1, x2, y2, color, width);
}

std::string Dot(double x, double y, absl::string_view color,
                absl::string_view title) {
  return absl::StrFormat(
      "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"6\" fill=\"%s\" stroke=\"#ffffff\">"
      "<title>%s</title></circle>\n",
      x, y, color, Escaped(title));
}

std::string Ring(double x, double y, absl::string_view color,
                 absl::string_view title) {
  return absl::StrFormat(
      "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"5\" fill=\"#ffffff\" stroke=\"%s\" "
      "stroke-width=\"2\"><title>%s</title></circle>\n",
      x, y, color, Escaped(title));
}

std::string Document(int width, int height, absl::string_view body) {
  return absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
      "viewBox=\"0 0 %d %d\" font-family=\"sans-serif\">\n"
      "<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n%s</svg>\n",
      width, height, width, height, body);
}

const char* Color(int index) {
  static constexpr std::array<const char*, 14> kColors = {
      "#444444", "#1f77b4", "#d62728", "#2ca02c", "#9467bd",
      "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#bcbd22",
      "#00695c", "#f4a582", "#7b61ff", "#a1d99b"};
  return kColors[index % kColors.size()];
}

Axis::Axis(const std::vector<double>& values, double from, double to,
           Scale scale)
    : from_(from), to_(to) {
  low_ = *std::min_element(values.begin(), values.end());
  high_ = *std::max_element(values.begin(), values.end());
  logarithmic_ = scale == Scale::kLogarithmic || (low_ > 0 && high_ > 3 * low_);
  low_ = Scaled(low_);
  high_ = Scaled(high_);
  const double margin = std::max(0.08 * (high_ - low_), 1e-3);
  low_ -= margin;
  high_ += margin;
}

double Axis::Scaled(double value) const {
  return logarithmic_ ? std::log10(value) : value;
}

double Axis::Unscaled(double scaled) const {
  return logarithmic_ ? std::pow(10, scaled) : scaled;
}

double Axis::Position(double value) const {
  return from_ + (Scaled(value) - low_) / (high_ - low_) * (to_ - from_);
}

// As many digits of each power of ten as there is room for.
std::vector<double> Axis::LogarithmicTicks() const {
  std::vector<double> digits = {1};
  if (high_ - low_ < 2.5) digits = {1, 2, 5};
  if (high_ - low_ < 1) digits = {1, 2, 3, 4, 5, 6, 8};
  std::vector<double> ticks;
  for (int power = static_cast<int>(std::floor(low_)); power <= high_; ++power)
    for (const double digit : digits)
      ticks.push_back(digit * std::pow(10, power));
  return ticks;
}

// Multiples of `step`, 1, 2 or 5 times a power of ten, four to eight of them.
std::vector<double> Axis::EvenTicks(double& step) const {
  const double rough = (high() - low()) / 5;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  const double digit = rough / power;
  step = power * (digit < 1.5 ? 1 : digit < 3 ? 2 : digit < 7 ? 5 : 10);
  std::vector<double> ticks;
  for (double v = std::ceil(low() / step) * step; v <= high(); v += step)
    ticks.push_back(std::abs(v) < 1e-9 * step ? 0 : v);  // never "-0"
  return ticks;
}

std::vector<Axis::Tick> Axis::Ticks() const {
  // Less than half a power of ten has too few round numbers.
  const bool even = !logarithmic_ || high_ - low_ < 0.5;
  double step = 1;
  const std::vector<double> values =
      even ? EvenTicks(step) : LogarithmicTicks();
  // 1e-9: log10 of a power of ten may round down.
  const int decimals =
      std::max(0, -static_cast<int>(std::floor(std::log10(step) + 1e-9)));
  std::vector<Tick> ticks;
  for (const double value : values) {
    if (Scaled(value) < low_ || Scaled(value) > high_) continue;
    ticks.push_back(
        {Position(value), even ? absl::StrFormat("%.*f", decimals, value)
                               : absl::StrFormat("%g", value)});
  }
  return ticks;
}

std::string Grid(const Frame& frame, const Axis& x, const Axis& y,
                 absl::string_view x_unit) {
  std::string svg;
  for (const Axis::Tick& tick : x.Ticks()) {
    svg +=
        Line(tick.position, frame.top, tick.position, frame.bottom, kGridColor);
    svg += Text(tick.position, frame.bottom + 16,
                absl::StrCat(tick.label, x_unit), Anchor::kMiddle);
  }
  for (const Axis::Tick& tick : y.Ticks()) {
    svg +=
        Line(frame.left, tick.position, frame.right, tick.position, kGridColor);
    svg += Text(frame.left - 6, tick.position + 4, tick.label, Anchor::kEnd);
  }
  return svg +
         Line(frame.left, frame.bottom, frame.right, frame.bottom, kAxisColor) +
         Line(frame.left, frame.top, frame.left, frame.bottom, kAxisColor);
}

}  // namespace kvmix::svg
