#include "experiments/sweep/sweep_table.h"

#include "absl/strings/str_cat.h"
#include "experiments/record.pb.h"
#include "experiments/report.h"
#include "experiments/sweep/expand.h"
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

absl::Status CheckAllDone(const SweepFolder& folder) {
  int failed = 0, open = 0;
  std::string cells;
  for (const SweepCell& cell : folder.manifest().cell()) {
    const SweepFolder::State state = folder.StateOf(cell);
    if (state == SweepFolder::State::kDone) continue;
    const bool has_failed = state == SweepFolder::State::kFailed;
    ++(has_failed ? failed : open);
    absl::StrAppend(&cells, "\n  ", CellName(folder.manifest(), cell), ": ",
                    has_failed ? folder.Failure(cell) : "has not ended", " (",
                    folder.CellPath(cell), "/log.txt)");
  }
  if (failed + open == 0) return absl::OkStatus();
  return absl::AbortedError(
      absl::StrCat(failed, " of ", folder.manifest().cell_size(),
                   " cells failed; --retry_failed runs them again",
                   open > 0 ? absl::StrCat("; ", open,
                                           " have not ended; the same command "
                                           "goes on with them")
                            : "",
                   cells));
}

}  // namespace kvmix
