// A sweep on a cluster: a Slurm job array with a task for each cell that is
// open, and a job behind it that writes the sweep's tables and report.
//
// All machines must see the sweep's folder, this program and the files that the
// config names at the same paths. A task that is requeued, because its node
// failed or was taken away, goes on with the windows that its cell has kept;
// the cell's lock keeps two tasks from running it at once.
//
//   FOLDER/slurm/array.sh, report.sh         what was submitted
//   FOLDER/slurm/jobs.txt                    the numbers of both jobs
//   FOLDER/slurm/<job>_<task>.log            what Slurm says of a task
//   FOLDER/slurm/report.log                  what the job behind printed
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "experiments/sweep/sweep_folder.h"

namespace kvmix {

// Empty texts: the cluster's default.
struct SlurmOptions {
  std::string partition;
  std::string account;
  std::string time;    // limit of each task, as sbatch takes it: "2:00:00"
  std::string memory;  // of each task: "8G"
  std::string gpus;    // of each task: "1", or with a type "a100:1"
  int threads = 1;     // of each task
  int at_a_time = 0;   // tasks; 0: as many as the cluster gives
  bool retry_failed = false;  // also cells that failed before
};

struct SlurmScripts {
  int tasks = 0;
  std::string array;
  std::string report;
};

// program: path of kvmix. Errors: FailedPrecondition, no cell is open;
// InvalidArgument, an option or the folder's path with characters that a
// #SBATCH line cannot hold.
absl::StatusOr<SlurmScripts> MakeSlurmScripts(const SweepFolder& folder,
                                              const SlurmOptions& options,
                                              const std::string& program);

// Submits both with sbatch and returns what to tell the user. Errors: those of
// MakeSlurmScripts and of sbatch, after which no job is left behind;
// FailedPrecondition, jobs of this sweep are still in the queue, or a kvmix
// sweep runs in the folder.
absl::StatusOr<std::string> SubmitToSlurm(const SweepFolder& folder,
                                          const SlurmOptions& options);

}  // namespace kvmix
