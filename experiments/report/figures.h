// The figures and tables of a report.
#pragma once

#include <string>
#include <vector>

#include "experiments/report/collect.h"
#include "experiments/table.h"

namespace kvmix {

struct Figure {
  std::string id = {};  // a part of file names and links
  std::string title = {};
  std::string caption = {};
  std::string svg = {};      // empty: a table alone
  Table data = {};           // what is drawn, unrounded
  std::string command = {};  // that makes the data again
};

// What a method saves and costs against full precision, a row for each method
// of each run: memory (times smaller), throughput (times faster), quality (on
// every dataset, with its standard error).
Table IndicatorTable(const ReportInput& input);

// Context that fits a device's memory at batch 1, and the batch that fits at
// 4096 tokens, with the cache in half precision and under every method.
Table CapacityTable(const ReportInput& input);

// Shapes that capacity is computed for, besides that of the runs' model.
struct CapacityShape {
  std::string name = {};
  int num_layers, num_kv_heads, head_dim;
  double weight_bytes;
};

// All figures that the records have something for.
std::vector<Figure> MakeFigures(const ReportInput& input);

}  // namespace kvmix
