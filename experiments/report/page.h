// A report as one HTML file, and as Markdown, LaTeX and JSON.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "experiments/report/collect.h"
#include "experiments/report/figures.h"

namespace kvmix {

struct ReportPage {
  std::string title = {};
  std::string command = {};  // that makes the report again
  ReportInput input = {};
  Table indicators = {}, capacity = {};
  std::vector<Figure> figures = {};
};

// Everything that follows from the records.
ReportPage MakePage(ReportInput input, const std::string& title,
                    const std::string& command);

// Self-contained: styles, pictures, data and the few lines of script that sort
// tables and switch the theme are inside.
std::string Html(const ReportPage& page);
std::string Markdown(const ReportPage& page);
// Tables for \input, made with booktabs; pictures are in the HTML.
std::string Latex(const ReportPage& page);
std::string Json(const ReportPage& page);

// FOLDER/report.html, .md, .tex, .json and data/<figure>.csv.
absl::Status WriteReport(const ReportPage& page, const std::string& folder);

}  // namespace kvmix
