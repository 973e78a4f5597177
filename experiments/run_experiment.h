// A whole experiment, from a resolved config to the files of its report.
#pragma once

#include <atomic>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "experiments/evaluate.h"
#include "experiments/experiment.pb.h"
#include "experiments/loaded_model.h"
#include "experiments/record.pb.h"
#include "experiments/stages.h"

namespace kvmix {

struct ExperimentResult {
  std::string folder;  // <output>/<name>/<fingerprint>
  RunRecord record;
  Timings timings;
};

// Where an experiment that is the cell of a sweep keeps things.
struct CellFolders {
  std::string results;            // instead of <output>/<name>/<fingerprint>
  std::string full_precision;     // see FullPrecisionStore; shared by cells
  double full_precision_gib = 0;  // more logits than this are not kept
};

// `config` is resolved. Finished windows and profiles found on disk are used.
// Cancelled when *stop becomes true; what is finished is on disk by then.
absl::StatusOr<ExperimentResult> RunExperiment(
    const ExperimentConfig& config, const std::atomic<bool>* stop = nullptr,
    const CellFolders* cell = nullptr);

// What attends to a method's cache.
struct AttentionOf {
  std::string kernels;      // of decode steps, AttentionKernels
  std::string why_on_host;  // DeviceSequences::WhyOnHost
};

// Stages Profile and Allocate for all methods of a config.
struct PreparedMethods {
  std::vector<RunnableMethod> methods;
  std::vector<StoredProfile> profiles;  // each one once
  std::vector<std::string> profile_of;  // key for each method, or ""
  std::vector<AttentionOf> attention;   // of each method

  // The profile that method m's plan was made from, or null.
  const ImportanceProfile* ProfileOf(size_t m) const;
};
absl::StatusOr<PreparedMethods> PrepareMethods(
    const ExperimentConfig& config, LoadedModel& model,
    const std::atomic<bool>* stop = nullptr);

// What would run, without model or texts, for --dry_run.
std::string Describe(const ExperimentConfig& config);

}  // namespace kvmix
