// The few shapes that pictures of results are made of: SVG 1.1 as text, no
// scripts, no outside fonts.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace kvmix::svg {

enum class Anchor { kStart, kMiddle, kEnd };

std::string Escaped(absl::string_view text);
std::string Text(double x, double y, absl::string_view text,
                 Anchor anchor = Anchor::kStart, int size = 12);
std::string Line(double x1, double y1, double x2, double y2,
                 absl::string_view color, double width = 1);
// A dot with a white rim, so that dots on top of each other show. `title`
// appears when the mouse rests on it.
std::string Dot(double x, double y, absl::string_view color,
                absl::string_view title);
std::string Ring(double x, double y, absl::string_view color,
                 absl::string_view title);
std::string Document(int width, int height, absl::string_view body);

// Fourteen colours that differ, again and again.
const char* Color(int index);

// One axis of a plot over the range of `values`, with a margin, from pixel
// `from` to pixel `to`.
class Axis {
 public:
  enum class Scale {
    kFitting,  // logarithmic where the values span more than a factor of three
    kLogarithmic,  // values are positive
  };
  Axis(const std::vector<double>& values, double from, double to,
       Scale scale = Scale::kFitting);

  double Position(double value) const;
  // Ends of the axis, as values.
  double low() const { return Unscaled(low_); }
  double high() const { return Unscaled(high_); }

  struct Tick {
    double position;
    std::string label;  // all with as many decimals
  };
  std::vector<Tick> Ticks() const;

 private:
  double Scaled(double value) const;
  double Unscaled(double scaled) const;
  std::vector<double> LogarithmicTicks() const;
  std::vector<double> EvenTicks(double& step) const;

  const double from_, to_;
  double low_, high_;  // scaled
  bool logarithmic_;
};

// The grid, the ticks' labels (x's with `x_unit` behind) and the two axes of a
// plot that fills [left, right] x [top, bottom].
struct Frame {
  double left, top, right, bottom;
};
std::string Grid(const Frame& frame, const Axis& x, const Axis& y,
                 absl::string_view x_unit);

}  // namespace kvmix::svg
