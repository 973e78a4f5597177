#include "experiments/bench/bench_figure.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "experiments/svg.h"

namespace kvmix {
namespace {

using svg::Anchor;

constexpr int kWidth = 960;
constexpr int kMinHeight = 480;
constexpr svg::Frame kPlot = {
    .left = 64, .top = 40, .right = 584, .bottom = 430};
constexpr int kLegendX = 614;
constexpr char kRoofColor[] = "#999999";

struct Point {
  const BenchRow* row;
  double mebibytes;
  double steps;  // a second
  int color;     // by method
  bool ring;     // fewer threads than other rows

  std::string At(double x, double y, absl::string_view title) const {
    return ring ? svg::Ring(x, y, svg::Color(color), title)
                : svg::Dot(x, y, svg::Color(color), title);
  }
};

std::vector<Point> Points(const BenchReport& report) {
  std::vector<Point> points;
  std::vector<std::string> methods;
  int most_threads = 0;
  for (const BenchRow& row : report.rows)
    most_threads = std::max(most_threads, row.threads);
  for (const BenchRow& row : report.rows) {
    if (row.decode.median == 0) continue;
    const auto known = std::find(methods.begin(), methods.end(), row.method);
    points.push_back(
        {.row = &row,
         .mebibytes = static_cast<double>(row.decode_bytes) / (1 << 20),
         .steps = row.decode.median / static_cast<double>(row.batch),
         .color = static_cast<int>(known - methods.begin()),
         .ring = row.threads < most_threads});
    if (known == methods.end()) methods.push_back(row.method);
  }
  return points;
}

double RoofSteps(const BenchBandwidth& read, double mebibytes) {
  return read.bytes_per_second / (mebibytes * (1 << 20));
}

std::string Roofs(const BenchReport& report, const svg::Axis& x,
                  const svg::Axis& y) {
  std::string picture;
  double label = 8;  // labels side by side: lines may lie close together
  for (const BenchBandwidth& read : report.bandwidth) {
    // Clipped to the plot: the line falls from left to right.
    const double first = std::max(x.low(), RoofSteps(read, 1) / y.high());
    const double last = std::min(x.high(), RoofSteps(read, 1) / y.low());
    if (first >= last) continue;
    const double x1 = x.Position(first), x2 = x.Position(last);
    const double y1 = y.Position(RoofSteps(read, first));
    const double y2 = y.Position(RoofSteps(read, last));
    picture += svg::Line(x1, y1, x2, y2, kRoofColor, 2);
    picture += svg::Text(
        x1 + label, y1 + (y2 - y1) * label / (x2 - x1) - 6,
        absl::StrFormat("%.1f GB/s, %d thread%s", 1e-9 * read.bytes_per_second,
                        read.threads, read.threads == 1 ? "" : "s"),
        Anchor::kStart, 10);
    label += 130;
  }
  return picture;
}

std::string Label(const BenchRow& row) {
  return absl::StrCat(row.method, ", depth ", row.depth, ", batch ", row.batch,
                      ", ", row.threads,
                      row.threads == 1 ? " thread" : " threads");
}

std::string Legend(const std::vector<Point>& points) {
  std::string picture;
  double y = kPlot.top + 6;
  for (const Point& point : points) {
    picture += point.At(kLegendX, y, "");
    picture +=
        svg::Text(kLegendX + 14, y + 4, Label(*point.row), Anchor::kStart, 11);
    picture +=
        svg::Text(kWidth - 20, y + 4,
                  absl::StrFormat("%.0f %%", 100 * point.row->bandwidth_share),
                  Anchor::kEnd, 11);
    y += 17;
  }
  return picture;
}

}  // namespace

std::string BenchFigureSvg(const BenchReport& report) {
  const std::vector<Point> points = Points(report);
  if (points.empty()) return "";
  std::vector<double> mebibytes, steps;
  for (const Point& point : points) {
    mebibytes.push_back(point.mebibytes);
    steps.push_back(point.steps);
    // Room for the roofs above the points.
    for (const BenchBandwidth& read : report.bandwidth)
      steps.push_back(RoofSteps(read, point.mebibytes));
  }
  const auto logarithmic = svg::Axis::Scale::kLogarithmic;
  const svg::Axis x(mebibytes, kPlot.left, kPlot.right, logarithmic);
  const svg::Axis y(steps, kPlot.bottom, kPlot.top, logarithmic);
  std::string picture = svg::Grid(kPlot, x, y, "");
  picture += Roofs(report, x, y);
  for (const Point& point : points) {
    picture += point.At(x.Position(point.mebibytes), y.Position(point.steps),
                        Label(*point.row));
  }
  picture += svg::Text(
      kPlot.left, kPlot.top - 14,
      absl::StrCat("decode steps a second, ", report.model, ", ",
                   report.compute, ", attention in ", report.arithmetic));
  picture +=
      svg::Text(kPlot.right, kPlot.bottom + 34,
                "MiB that a step must read: weights and caches", Anchor::kEnd);
  picture +=
      svg::Text(kWidth - 20, kPlot.top - 14, "of bandwidth", Anchor::kEnd, 11);
  const int height = std::max(
      kMinHeight, static_cast<int>(kPlot.top + 17 * points.size() + 20));
  return svg::Document(kWidth, height, absl::StrCat(picture, Legend(points)));
}

}  // namespace kvmix
