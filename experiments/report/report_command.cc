#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "experiments/command_line.h"
#include "experiments/commands.h"
#include "experiments/paths.h"
#include "experiments/report/page.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {

absl::Status ReportCommand(absl::Span<const std::string> args,
                           const std::atomic<bool>&) {
  CommandLine command_line(
      "kvmix report FOLDER... [flags]",
      "Writes one report of all records below the folders: report.html (one "
      "file, works\noffline), report.md, report.tex, report.json, and the data "
      "of every figure as CSV.");
  std::string output = "report";
  std::string title = "KV cache compression";
  command_line.Flag("output", &output, "folder of the report");
  command_line.Flag("title", &title, "of the page");
  KVMIX_ASSIGN_OR_RETURN(const std::vector<std::string> folders,
                         command_line.Parse(args));
  if (folders.empty())
    return UsageError("takes at least one folder; see kvmix report --help");
  KVMIX_ASSIGN_OR_RETURN(ReportInput input, CollectRecords(folders));
  const ReportPage page =
      MakePage(std::move(input), title,
               absl::StrCat("kvmix report ", absl::StrJoin(folders, " ")));
  const std::string folder = ResolvePath(output);
  KVMIX_RETURN_IF_ERROR(WriteReport(page, folder));
  std::cout << page.input.runs.size() << " experiments, " << page.figures.size()
            << " figures: " << folder << "/report.html\n";
  return absl::OkStatus();
}

}  // namespace kvmix
