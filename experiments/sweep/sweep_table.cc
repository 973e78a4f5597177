#include "experiments/sweep/sweep_table.h"

#include "absl/strings/str_cat.h"
#include "experiments/record.pb.h"
#include "experiments/report.h"
#include "experiments/text_proto.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

// Puts the rows of a cell's table below `all`, the cell's values in front.
void Append(const SweepManifest& manifest, const SweepCell& cell,
            const Table& table, Table& all) {
  if (all.header.empty()) {
    for (const SweepAxis& axis : manifest.axis())
      all.header.push_back(axis.name());
    all.header.insert(all.header.end(), table.header.begin(),
                      table.header.end());
  }
  for (const std::vector<std::string>& cells : table.rows) {
    std::vector<std::string> row(cell.label().begin(), cell.label().end());
    row.insert(row.end(), cells.begin(), cells.end());
    row.resize(all.header.size());
    all.rows.push_back(std::move(row));
  }
}

}  // namespace

absl::StatusOr<Table> WriteSweepTables(const SweepFolder& folder) {
  Table full, summary;
  for (const SweepCell& cell : folder.manifest().cell()) {
    if (folder.StateOf(cell) != SweepFolder::State::kDone) continue;
    RunRecord record;
    KVMIX_RETURN_IF_ERROR(
        ReadTextProto(folder.CellPath(cell) + "/record.textproto", record));
    Append(folder.manifest(), cell, FullTable(record, Timings()), full);
    Append(folder.manifest(), cell, SummaryTable(record, Timings()), summary);
  }
  KVMIX_RETURN_IF_ERROR(
      WriteFileAtomically(folder.path() + "/table.csv", full.Csv()));
  KVMIX_RETURN_IF_ERROR(
      WriteFileAtomically(folder.path() + "/table.md", summary.Markdown()));
  return summary;
}

}  // namespace kvmix
