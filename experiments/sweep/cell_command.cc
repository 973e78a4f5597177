#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <string>

#include "experiments/command_line.h"
#include "experiments/commands.h"
#include "experiments/paths.h"
#include "experiments/sweep/sweep_folder.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {

absl::Status CellCommand(absl::Span<const std::string> args,
                         const std::atomic<bool>& stop) {
  CommandLine command_line(
      "kvmix cell FOLDER KEY [flags]",
      "Runs one cell of a sweep, as kvmix sweep does for each. KEY is the "
      "cell's in\nFOLDER/manifest.textproto.");
  int threads = 0;
  int64_t parent = 0;
  command_line.Flag("threads", &threads, "0: one for each core");
  command_line.Flag("parent", &parent,
                    "process to end with, however that one ends; 0: none");
  KVMIX_ASSIGN_OR_RETURN(const std::vector<std::string> arguments,
                         command_line.Parse(args));
  if (arguments.size() != 2)
    return UsageError("takes a folder and a key; see kvmix cell --help");
  if (parent != 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)  // it ended before the line above
      return absl::CancelledError("the sweep has ended");
  }
  KVMIX_ASSIGN_OR_RETURN(const SweepFolder folder,
                         SweepFolder::Open(ResolvePath(arguments[0])));
  KVMIX_ASSIGN_OR_RETURN(const SweepCell* cell, folder.FindCell(arguments[1]));
  const absl::Status status = RunCell(folder, *cell, threads, &stop);
  if (!status.ok() && !absl::IsCancelled(status)) {
    KVMIX_RETURN_IF_ERROR(
        folder.MarkFailed(*cell, std::string(status.message())));
  }
  return status;
}

}  // namespace kvmix
