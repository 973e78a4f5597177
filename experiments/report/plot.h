// Plots as inline SVG for a page with a light and a dark theme: texts, grids
// and areas take the page's colours (classes t, g, a and the variable --heat),
// data takes colours that stand out on both, and after these other shapes of
// marks. A mark's figures appear when the mouse rests on it.
#pragma once

#include <string>
#include <vector>

namespace kvmix::plot {

struct Point {
  double x = 0;
  double y = 0;
  double error = 0;        // half of the bar; 0: none
  std::string title = {};  // shown on hover
};

struct Series {
  std::string name = {};
  std::vector<Point> points = {};
  bool line = false;   // connects the points in the order of x
  bool guide = false;  // a faint line beneath all others, no marks
  // Equal in all plots that show the same thing: colour and shape of the marks.
  // Below 0: the place in the plot.
  int style = -1;
};

struct XyPlot {
  std::string x_label = {}, y_label = {};
  std::vector<Series> series = {};
  bool from_zero = false;  // the y axis
};
std::string Draw(const XyPlot& plot);

// The points of all series that no other beats: none has less x and less y.
Series LowerLeftFront(const std::vector<Series>& series);

// Bars, one group for each label; `stacked`: the series on top of each other.
struct BarPlot {
  std::string y_label = {};
  std::vector<std::string> labels = {};
  struct Bars {
    std::string name = {};
    std::vector<double> values = {};  // one for each label
    std::vector<double> errors = {};  // the same, or empty
    int style = -1;                   // as Series::style
  };
  std::vector<Bars> series = {};
  bool stacked = false;
};
std::string Draw(const BarPlot& plot);

// Cells [rows, columns], stronger where the value is larger.
struct HeatMap {
  std::string x_label = {}, y_label = {};
  std::vector<std::string> rows = {}, columns = {};
  std::vector<std::vector<double>> values = {};  // NaN: no cell
  std::vector<std::vector<std::string>> texts =
      {};                    // in the cells; may be empty
  double low = 0, high = 1;  // of the shades
};
std::string Draw(const HeatMap& map);

}  // namespace kvmix::plot
