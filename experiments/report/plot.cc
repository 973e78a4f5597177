#include "experiments/report/plot.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "experiments/svg.h"

namespace kvmix::plot {
namespace {

using svg::Anchor;
using svg::Axis;

constexpr double kWidth = 860;
constexpr double kHeight = 380;
constexpr svg::Frame kFrame = {
    .left = 70, .top = 16, .right = 556, .bottom = 330};
constexpr double kLegend = 574;
constexpr size_t kMostLegendCharacters = 38;
constexpr double kCharacter = 7;  // width, on the wide side

std::string Label(double x, double y, absl::string_view text,
                  Anchor anchor = Anchor::kStart, bool vertical = false) {
  const char* name = anchor == Anchor::kStart    ? "start"
                     : anchor == Anchor::kMiddle ? "middle"
                                                 : "end";
  const std::string turn =
      vertical ? absl::StrFormat(" transform=\"rotate(-90 %.1f %.1f)\"", x, y)
               : "";
  return absl::StrFormat(
      "<text class=\"t\" x=\"%.1f\" y=\"%.1f\" "
      "text-anchor=\"%s\"%s>%s</text>\n",
      x, y, name, turn, svg::Escaped(text));
}

std::string GridLine(double x1, double y1, double x2, double y2,
                     const char* style) {
  return absl::StrFormat(
      "<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n",
      style, x1, y1, x2, y2);
}

std::string Colored(double x1, double y1, double x2, double y2,
                    const char* color, double width) {
  return absl::StrFormat(
      "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" "
      "stroke-width=\"%.1f\"/>\n",
      x1, y1, x2, y2, color, width);
}

std::string Rectangle(double x, double y, double width, double height,
                      absl::string_view style, absl::string_view title) {
  return absl::StrFormat(
      "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" %s><title>%s"
      "</title></rect>\n",
      x, y, width, std::max(height, 0.0), style, svg::Escaped(title));
}

std::string Picture(double height, absl::string_view body) {
  return absl::StrFormat(
      "<svg class=\"plot\" viewBox=\"0 0 %.0f %.0f\" role=\"img\" "
      "xmlns=\"http://www.w3.org/2000/svg\">\n%s</svg>\n",
      kWidth, height, body);
}

std::string Shortened(const std::string& name) {
  if (name.size() <= kMostLegendCharacters) return name;
  return name.substr(0, kMostLegendCharacters - 3) + "...";
}

// Colours, and then the same ones with another shape. All colours but the
// first, a dark grey that a dark page swallows.
struct Style {
  enum Shape { kCircle, kSquare, kDiamond, kTriangle, kShapes };
  static Style Of(int asked, size_t place) {
    constexpr int kColors = 13;
    const int index = asked >= 0 ? asked : static_cast<int>(place);
    return {.color = svg::Color(index % kColors + 1),
            .shape = static_cast<Shape>(index / kColors % kShapes)};
  }
  const char* color;
  Shape shape;
};

// Marks of equal area, r being a circle's radius.
std::string Mark(const Style& style, double x, double y, double r,
                 absl::string_view title) {
  const std::string rest =
      absl::StrFormat(" class=\"dot\" fill=\"%s\"><title>%s</title></",
                      style.color, svg::Escaped(title));
  if (style.shape == Style::kCircle) {
    return absl::StrFormat(
        "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\"%scircle>\n", x, y, r, rest);
  }
  const double s = 0.89 * r, d = 1.25 * r, t = 1.35 * r;
  const std::string path =
      style.shape == Style::kSquare
          ? absl::StrFormat("M%.1f %.1fh%.1fv%.1fh%.1fz", x - s, y - s, 2 * s,
                            2 * s, -2 * s)
      : style.shape == Style::kDiamond
          ? absl::StrFormat("M%.1f %.1fL%.1f %.1fL%.1f %.1fL%.1f %.1fz", x,
                            y - d, x + d, y, x, y + d, x - d, y)
          : absl::StrFormat("M%.1f %.1fL%.1f %.1fL%.1f %.1fz", x, y - t,
                            x + 1.15 * t, y + 0.67 * t, x - 1.15 * t,
                            y + 0.67 * t);
  return absl::StrCat("<path d=\"", path, "\"", rest, "path>\n");
}

double LegendTop(size_t row) {
  return kFrame.top + 6 + 18 * static_cast<double>(row);
}

std::string LegendRow(size_t row, const std::string& name, const Style& style) {
  const double y = LegendTop(row);
  return Mark(style, kLegend + 5.5, y + 5.5, 5.5, name) +
         Label(kLegend + 17, y + 10, Shortened(name));
}

std::string BarLegendRow(size_t row, const std::string& name,
                         const char* color) {
  const double y = LegendTop(row);
  return Rectangle(kLegend, y, 11, 11, absl::StrCat("fill=\"", color, "\""),
                   name) +
         Label(kLegend + 17, y + 10, Shortened(name));
}

std::string GuideLegendRow(size_t row, const std::string& name) {
  const double y = LegendTop(row);
  return GridLine(kLegend, y + 6, kLegend + 11, y + 6, "a") +
         Label(kLegend + 17, y + 10, Shortened(name));
}

double HeightFor(size_t legend_rows) {
  return std::max(kHeight,
                  kFrame.top + 18.0 * static_cast<double>(legend_rows) + 12);
}

std::string YGrid(const Axis& y, const std::string& label) {
  std::string svg;
  for (const Axis::Tick& tick : y.Ticks()) {
    svg +=
        GridLine(kFrame.left, tick.position, kFrame.right, tick.position, "g");
    svg += Label(kFrame.left - 6, tick.position + 4, tick.label, Anchor::kEnd);
  }
  svg += GridLine(kFrame.left, kFrame.bottom, kFrame.right, kFrame.bottom, "a");
  svg += GridLine(kFrame.left, kFrame.top, kFrame.left, kFrame.bottom, "a");
  return svg + Label(16, (kFrame.top + kFrame.bottom) / 2, label,
                     Anchor::kMiddle, /*vertical=*/true);
}

std::string XGrid(const Axis& x, const std::string& label) {
  std::string svg;
  for (const Axis::Tick& tick : x.Ticks()) {
    svg +=
        GridLine(tick.position, kFrame.top, tick.position, kFrame.bottom, "g");
    svg +=
        Label(tick.position, kFrame.bottom + 17, tick.label, Anchor::kMiddle);
  }
  return svg + Label((kFrame.left + kFrame.right) / 2, kFrame.bottom + 40,
                     label, Anchor::kMiddle);
}

std::string ErrorBar(const Point& point, const Axis& x, const Axis& y,
                     const char* color) {
  if (point.error <= 0) return "";
  const double at = x.Position(point.x);
  const double low =
      std::clamp(y.Position(point.y + point.error), kFrame.top, kFrame.bottom);
  const double bottom = point.y - point.error;
  const double high = bottom <= y.low() ? kFrame.bottom : y.Position(bottom);
  return Colored(at, low, at, high, color, 1.2) +
         Colored(at - 4, low, at + 4, low, color, 1.2) +
         Colored(at - 4, high, at + 4, high, color, 1.2);
}

std::vector<Point> Sorted(std::vector<Point> points) {
  std::stable_sort(points.begin(), points.end(),
                   [](const Point& a, const Point& b) { return a.x < b.x; });
  return points;
}

std::string DrawGuide(const Series& series, const Axis& x, const Axis& y) {
  const std::vector<Point> points = Sorted(series.points);
  std::string svg;
  for (size_t i = 1; i < points.size(); ++i) {
    svg += GridLine(x.Position(points[i - 1].x), y.Position(points[i - 1].y),
                    x.Position(points[i].x), y.Position(points[i].y), "a");
  }
  return svg;
}

std::string DrawSeries(const Series& series, const Axis& x, const Axis& y,
                       const Style& style) {
  const char* const color = style.color;
  const std::vector<Point> points = Sorted(series.points);
  std::string svg;
  for (size_t i = 1; series.line && i < points.size(); ++i) {
    svg +=
        Colored(x.Position(points[i - 1].x), y.Position(points[i - 1].y),
                x.Position(points[i].x), y.Position(points[i].y), color, 1.6);
  }
  for (const Point& point : points) svg += ErrorBar(point, x, y, color);
  for (const Point& point : points) {
    svg += Mark(style, x.Position(point.x), y.Position(point.y),
                series.line ? 3.5 : 5.0, point.title);
  }
  return svg;
}

double WidthOf(const std::string& text) {
  return kCharacter * static_cast<double>(Shortened(text).size());
}

// Names below bars stand upright if one of them does not fit in the `room` that
// each has.
bool AreUpright(const std::vector<std::string>& labels, double room) {
  return std::any_of(labels.begin(), labels.end(),
                     [&](const std::string& label) {
                       return WidthOf(label) + kCharacter > room;
                     });
}

std::string BarLabel(double x, bool upright, const std::string& label) {
  const double y = kFrame.bottom + (upright ? 8 : 15);
  if (!upright) return Label(x, y, label, Anchor::kMiddle);
  return Label(x + 4, y, Shortened(label), Anchor::kEnd, /*vertical=*/true);
}

std::string Figure(double value) { return absl::StrFormat("%.4g", value); }

}  // namespace

std::string Draw(const XyPlot& plot) {
  std::vector<double> xs, ys;
  for (const Series& series : plot.series) {
    for (const Point& point : series.points) {
      xs.push_back(point.x);
      ys.push_back(point.y);
      ys.push_back(point.y + point.error);
      if (point.y - point.error > 0 || point.y <= 0)
        ys.push_back(point.y - point.error);
    }
  }
  if (xs.empty()) return "";
  if (plot.from_zero) ys.push_back(0);
  const Axis x(xs, kFrame.left, kFrame.right);
  const Axis y(ys, kFrame.bottom, kFrame.top);
  std::string body = XGrid(x, plot.x_label) + YGrid(y, plot.y_label);
  for (const Series& series : plot.series)
    if (series.guide) body += DrawGuide(series, x, y);
  for (size_t i = 0; i < plot.series.size(); ++i) {
    if (plot.series[i].guide) {
      body += GuideLegendRow(i, plot.series[i].name);
      continue;
    }
    const Style style = Style::Of(plot.series[i].style, i);
    body += DrawSeries(plot.series[i], x, y, style);
    body += LegendRow(i, plot.series[i].name, style);
  }
  return Picture(HeightFor(plot.series.size()), body);
}

Series LowerLeftFront(const std::vector<Series>& series) {
  std::vector<Point> all;
  for (const Series& one : series)
    all.insert(all.end(), one.points.begin(), one.points.end());
  std::stable_sort(all.begin(), all.end(), [](const Point& a, const Point& b) {
    return a.x != b.x ? a.x < b.x : a.y < b.y;
  });
  Series front = {.name = "Pareto front", .points = {}, .guide = true};
  for (const Point& point : all) {
    if (!front.points.empty() && point.y >= front.points.back().y) continue;
    front.points.push_back(point);
    front.points.back().error = 0;
  }
  return front;
}

std::string Draw(const BarPlot& plot) {
  const size_t count = plot.labels.size();
  if (count == 0) return "";
  std::vector<double> ends = {0};
  for (size_t i = 0; i < count; ++i) {
    double sum = 0;
    for (const BarPlot::Bars& bars : plot.series) {
      sum += bars.values[i];
      ends.push_back(plot.stacked ? sum : bars.values[i]);
      if (!bars.errors.empty()) ends.push_back(ends.back() + bars.errors[i]);
    }
  }
  const Axis y(ends, kFrame.bottom, kFrame.top);
  std::string body = YGrid(y, plot.y_label);
  const double room = (kFrame.right - kFrame.left) / static_cast<double>(count);
  const bool upright = AreUpright(plot.labels, room);
  double longest = 0;
  for (const std::string& label : plot.labels)
    longest = std::max(longest, WidthOf(label));
  const double zero = y.Position(0);
  const double width =
      0.8 * room / (plot.stacked ? 1 : static_cast<double>(plot.series.size()));
  for (size_t i = 0; i < count; ++i) {
    const double left = kFrame.left + room * (static_cast<double>(i) + 0.1);
    double below = 0;
    for (size_t s = 0; s < plot.series.size(); ++s) {
      const BarPlot::Bars& bars = plot.series[s];
      const double top = bars.values[i] + (plot.stacked ? below : 0);
      const double bar_bottom = plot.stacked ? y.Position(below) : zero;
      const double x =
          plot.stacked ? left : left + width * static_cast<double>(s);
      const double y1 = std::min(y.Position(top), bar_bottom);
      const double y2 = std::max(y.Position(top), bar_bottom);
      body += Rectangle(
          x, y1, width, y2 - y1,
          absl::StrCat("fill=\"", Style::Of(bars.style, s).color, "\""),
          absl::StrCat(plot.labels[i], ", ", bars.name, ": ",
                       Figure(bars.values[i])));
      if (!bars.errors.empty() && bars.errors[i] > 0) {
        const double middle = x + width / 2;
        body += GridLine(middle, y.Position(top - bars.errors[i]), middle,
                         y.Position(top + bars.errors[i]), "a");
      }
      below = top;
    }
    body += BarLabel(left + 0.4 * room, upright, plot.labels[i]);
  }
  for (size_t s = 0; s < plot.series.size(); ++s) {
    body += BarLegendRow(s, plot.series[s].name,
                         Style::Of(plot.series[s].style, s).color);
  }
  return Picture(std::max(HeightFor(plot.series.size()),
                          kFrame.bottom + (upright ? longest + 16 : 30)),
                 body);
}

std::string Draw(const HeatMap& map) {
  if (map.rows.empty() || map.columns.empty()) return "";
  size_t longest = 0;
  for (const std::string& row : map.rows)
    longest = std::max(longest, std::min(row.size(), kMostLegendCharacters));
  const double left = 34 + 6.6 * static_cast<double>(longest);
  const double top = 10;
  const double cell = std::min(
      54.0, (kWidth - left - 16) / static_cast<double>(map.columns.size()));
  const double row_height = map.rows.size() > 40 ? 9 : 20;
  std::string body;
  for (size_t r = 0; r < map.rows.size(); ++r) {
    const double y = top + row_height * static_cast<double>(r);
    body += Label(left - 6, y + row_height / 2 + 4, Shortened(map.rows[r]),
                  Anchor::kEnd);
    for (size_t c = 0; c < map.columns.size(); ++c) {
      const double value = map.values[r][c];
      if (std::isnan(value)) continue;
      const double shade =
          map.high > map.low
              ? std::clamp((value - map.low) / (map.high - map.low), 0.0, 1.0)
              : 0;
      const double x = left + cell * static_cast<double>(c);
      body += Rectangle(
          x, y, cell, row_height,
          absl::StrFormat("class=\"cell\" fill-opacity=\"%.3f\"",
                          0.04 + 0.76 * shade),
          absl::StrCat(map.rows[r], ", ", map.columns[c], ": ", Figure(value)));
      if (!map.texts.empty() && cell >= 14) {
        body += Label(x + cell / 2, y + row_height / 2 + 4, map.texts[r][c],
                      Anchor::kMiddle);
      }
    }
  }
  const double bottom = top + row_height * static_cast<double>(map.rows.size());
  const size_t step = static_cast<size_t>(std::ceil(26 / cell));
  for (size_t c = 0; c < map.columns.size(); c += step) {
    body += Label(left + cell * (static_cast<double>(c) + 0.5), bottom + 15,
                  map.columns[c], Anchor::kMiddle);
  }
  body += Label(left, bottom + 36, map.x_label);
  body += Label(12, (top + bottom) / 2, map.y_label, Anchor::kMiddle, true);
  return Picture(bottom + 44, body);
}

}  // namespace kvmix::plot
