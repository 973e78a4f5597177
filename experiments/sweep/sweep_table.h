// The results of a sweep as one table: a row for each cell, method and dataset,
// the cell's values in front. From what is on disk alone.
#pragma once

#include "absl/status/statusor.h"
#include "experiments/sweep/sweep_folder.h"
#include "experiments/table.h"

namespace kvmix {

// Writes table.csv (unrounded, all columns, without times) and table.md to the
// sweep's folder, of the cells that are done, and returns the latter.
absl::StatusOr<Table> WriteSweepTables(const SweepFolder& folder);

// Aborted if not all cells are done: names those that failed, and why, and
// those that have not ended.
absl::Status CheckAllDone(const SweepFolder& folder);

}  // namespace kvmix
