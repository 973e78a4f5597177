// The last stage: a run's record as files that people and programs read.
//
//   metrics.json   everything, stable; fields are described in
//                  docs/experiments.md
//   table.md, .csv the table of the paper; the CSV has one line for each
//                  method and dataset, and every figure
//   figure.svg     quality against compression, and the bits of every layer
#pragma once

#include <string>

#include "absl/status/status.h"
#include "experiments/experiment.pb.h"
#include "experiments/record.pb.h"
#include "experiments/table.h"

namespace kvmix {

std::string MetricsJson(const ExperimentConfig& config, const RunRecord& record,
                        const Timings& timings);

// One row a method. Quality is that of the first dataset; datasets with
// questions add the share of right answers and their NLL.
Table SummaryTable(const RunRecord& record, const Timings& timings);

// One row for each method and dataset, unrounded.
Table FullTable(const RunRecord& record, const Timings& timings);

// What the summary's numbers mean, for below it.
std::string SummaryNotes(const RunRecord& record, const Timings& timings);

// Writes the files above, and the record and timings as textprotos.
absl::Status Report(const ExperimentConfig& config, const RunRecord& record,
                    const Timings& timings, const std::string& folder);

}  // namespace kvmix
