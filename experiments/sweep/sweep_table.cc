#include "experiments/sweep/sweep_table.h"

#include "absl/strings/str_cat.h"
#include "experiments/record.pb.h"
#include "experiments/report.h"
#include "experiments/text_proto.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
absl::StatusOr<Table> WriteSweepTables(const SweepFolder& folder) {
  std::vector<std::string> axes;
  for (const SweepAxis& axis : folder.manifest().axis())
    axes.push_back(axis.name());
  Table full, summary;
  for (const SweepCell& cell : folder.manifest().cell()) {
    if (folder.StateOf(cell) != SweepFolder::State::kDone) continue;
    RunRecord record;
    KVMIX_RETURN_IF_ERROR(
        ReadTextProto(folder.CellPath(cell) + "/record.textproto", record));
    const std::vector<std::string> values(cell.label().begin(),
                                          cell.label().end());
    Table of_cell = FullTable(record, Timings());
    of_cell.PutInFront(axes, values);
    full.Append(of_cell);
    of_cell = SummaryTable(record, Timings());
    of_cell.PutInFront(axes, values);
    summary.Append(of_cell);
  }
  KVMIX_RETURN_IF_ERROR(
      WriteFileAtomically(folder.path() + "/table.csv", full.Csv()));
  KVMIX_RETURN_IF_ERROR(
      WriteFileAtomically(folder.path() + "/table.md", summary.Markdown()));
  return summary;
}

}  // namespace kvmix
