// Runs the cells of a sweep, each in a process of its own, so that one that
// crashes takes no other with it.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "experiments/sweep/file_lock.h"
#include "experiments/sweep/sweep_folder.h"

namespace kvmix {

struct SweepOptions {
  // Processes at a time.
  int jobs = 1;
  // Of each process; 0: the cores, divided by `jobs`.
  int threads = 0;
  // Also runs the cells that failed before.
  bool retry_failed = false;
  // The kvmix program. Default: this one.
  std::string program;
};

struct SweepOutcome {
  int done = 0;
  int ran = 0;  // of those, by this call
  std::vector<const SweepCell*> failed;
};

// Held by whatever starts cells. FailedPrecondition: something else does.
absl::StatusOr<FileLock> LockSweep(const SweepFolder& folder);

// Cells that are done are left alone. A cell that fails is recorded, and the
// others go on. FailedPrecondition: another program runs the sweep. Cancelled
// when *stop becomes true; the cells in flight keep their finished windows.
absl::StatusOr<SweepOutcome> RunSweep(const SweepFolder& folder,
                                      const SweepOptions& options,
                                      const std::atomic<bool>& stop);

}  // namespace kvmix
