// What a report is made from: the records that runs and sweeps left on disk.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "experiments/experiment.pb.h"
#include "experiments/record.pb.h"

namespace kvmix {

// One experiment, or one cell of a sweep.
struct ReportedRun {
  std::string folder;  // below the folder that was asked for
  std::string sweep;   // its name; "" for a run of its own
  std::string group;   // folder on disk of the sweep, or of the run
  // The cell's place on each axis of the sweep.
  std::vector<std::pair<std::string, std::string>> settings;
  ExperimentConfig config;
  RunRecord record;
  Timings timings;
  std::vector<StoredProfile> profiles;

  // "quickstart", "bits high_fraction=0.2"
  std::string Name() const;
};

// A row of `kvmix bench --output=json`.
struct ReportedBench {
  std::string model, kv, device;
  std::string command;  // that wrote it
  int64_t depth = 0, batch = 0, threads = 0;
  double prefill = 0, decode = 0, decode_low = 0, decode_high = 0;
  // Of batches that were served whole; 0: they were not.
  double throughput = 0, throughput_low = 0, throughput_high = 0;
  double cache_bytes = 0, weight_bytes = 0;
};

struct ReportInput {
  std::vector<ReportedRun> runs;
  std::vector<ReportedBench> bench;
  std::vector<MagnitudeRecord> magnitudes;
  std::vector<std::string> failed;  // cells of sweeps: name and reason
};

// Runs that were made for the same comparison: one experiment, or all cells of
// a sweep.
struct RunGroup {
  std::string name;
  std::vector<const ReportedRun*> runs;
  // For each run, whether its full precision differs from that of all runs
  // before it, as where texts or the mode vary.
  std::vector<bool> has_own_full_precision;

  // A method of a run by a name that tells it from all of its group. Full
  // precision is listed once if it is the same everywhere.
  struct Row {
    const ReportedRun* run;
    int method;
    std::string name;
  };
  std::vector<Row> Rows() const;
};
std::vector<RunGroup> GroupRuns(const ReportInput& input);

// Every record below the folders, in the order of their paths; cells of a sweep
// in the order of its manifest. Errors: a missing or unreadable folder or
// record, no record at all.
absl::StatusOr<ReportInput> CollectRecords(
    const std::vector<std::string>& folders);

}  // namespace kvmix
