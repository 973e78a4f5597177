#include "experiments/figure.h"

#include <algorithm>
#include <array>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "experiments/svg.h"
#include "kvmix/cache_plan.h"

namespace kvmix {
namespace {

using svg::Anchor;

constexpr int kWidth = 960;
constexpr svg::Frame kPlot = {
    .left = 64, .top = 40, .right = 584, .bottom = 340};
constexpr int kLegendX = 614;
constexpr int kMapTop = 430;
constexpr int kMapLeft = 200;  // of the bit map's cells
constexpr int kRowHeight = 13;

// Darker means more bits.
std::string BitColor(int bits) {
  static constexpr std::array<const char*, 9> kShades = {
      "#ffffff", "#fff7ec", "#fee8c8", "#fdbb84", "#ef6548",
      "#d7301f", "#b30000", "#990000", "#7f0000"};
  return bits <= 8 ? kShades[std::max(bits, 0)] : "#3b3b3b";
}

// Row m of the legend; row -1 names its columns.
std::string LegendText(int row, const std::string& name,
                       const std::string& compression,
                       const std::string& perplexity) {
  const double y = kPlot.top + 18 * (row + 1) + 10;
  return svg::Text(kLegendX + 14, y, name) +
         svg::Text(kLegendX + 250, y, compression, Anchor::kEnd) +
         svg::Text(kLegendX + 320, y, perplexity, Anchor::kEnd);
}

std::string QualityPlot(const RunRecord& record) {
  std::vector<double> compressions, perplexities;
  for (const MethodRecord& method : record.method()) {
    compressions.push_back(method.dataset(0).memory().compression());
    perplexities.push_back(method.dataset(0).quality().perplexity());
  }
  const svg::Axis x(compressions, kPlot.left, kPlot.right);
  const svg::Axis y(perplexities, kPlot.bottom, kPlot.top);
  std::string picture = svg::Grid(kPlot, x, y, "x");
  picture += svg::Text(
      kPlot.left, kPlot.top - 14,
      absl::StrCat("perplexity on ", record.method(0).dataset(0).name(), ", ",
                   record.mode(), " (lower is better)"));
  picture +=
      svg::Text(kPlot.right, kPlot.bottom + 34,
                "compression of the whole cache against fp16", Anchor::kEnd);
  picture += LegendText(-1, "", "compression", "PPL");
  for (int m = 0; m < record.method_size(); ++m) {
    const std::string& name = record.method(m).name();
    picture += svg::Dot(x.Position(compressions[m]),
                        y.Position(perplexities[m]), svg::Color(m), name);
    picture +=
        svg::Dot(kLegendX, kPlot.top + 18 * (m + 1) + 6, svg::Color(m), name);
    picture += LegendText(m, name, absl::StrFormat("%.2fx", compressions[m]),
                          absl::StrFormat("%.3f", perplexities[m]));
  }
  return picture;
}

std::string BitMap(const RunRecord& record) {
  std::string picture =
      svg::Text(kMapLeft, kMapTop - 12, "bits of every layer");
  const int num_layers = record.model().num_layers();
  const double cell =
      std::min(24.0, static_cast<double>(kWidth - kMapLeft - 20) / num_layers);
  double y = kMapTop;
  for (const MethodRecord& method : record.method()) {
    picture += svg::Text(kMapLeft - 24, y + kRowHeight + 4, method.name(),
                         Anchor::kEnd);
    for (const Side side : {Side::kKey, Side::kValue}) {
      picture += svg::Text(kMapLeft - 6, y + kRowHeight - 3,
                           side == Side::kKey ? "K" : "V", Anchor::kEnd, 10);
      for (int layer = 0; layer < method.plan().layer_size(); ++layer) {
        const std::vector<const QuantFormat*> formats =
            FormatsOf(method.plan().layer(layer), side);
        const double width = cell / static_cast<double>(formats.size());
        for (size_t i = 0; i < formats.size(); ++i) {
          const int bits = formats[i]->bits();
          absl::StrAppendFormat(
              &picture,
              "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" "
              "fill=\"%s\" stroke=\"#ffffff\"><title>layer %d%s %s: %d bits"
              "</title></rect>\n",
              kMapLeft + layer * cell + static_cast<double>(i) * width, y,
              width, kRowHeight, BitColor(bits), layer,
              formats.size() > 1 ? absl::StrCat(" head ", i) : "",
              SideName(side), bits);
        }
      }
      y += kRowHeight;
    }
    y += 8;
  }
  double x = kMapLeft;
  for (int bits : {1, 2, 3, 4, 5, 6, 8, 16}) {
    absl::StrAppendFormat(&picture,
                          "<rect x=\"%.1f\" y=\"%.1f\" width=\"14\" "
                          "height=\"12\" fill=\"%s\" stroke=\"#bbbbbb\"/>\n",
                          x, y + 8, BitColor(bits));
    picture += svg::Text(x + 18, y + 18, absl::StrCat(bits));
    x += 46;
  }
  return picture;
}

}  // namespace

std::string FigureSvg(const RunRecord& record) {
  const int height = kMapTop + record.method_size() * (2 * kRowHeight + 8) + 40;
  return svg::Document(kWidth, height,
                       absl::StrCat(QualityPlot(record), BitMap(record)));
}

}  // namespace kvmix
