#include <algorithm>
#include <filesystem>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "experiments/command_line.h"
#include "experiments/commands.h"
#include "experiments/paths.h"
#include "experiments/sweep/expand.h"
#include "experiments/sweep/slurm.h"
#include "experiments/sweep/sweep.h"
#include "experiments/sweep/sweep_folder.h"
#include "experiments/sweep/sweep_table.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"

namespace kvmix {
namespace {

std::string Plan(const SweepManifest& manifest) {
  std::string text = absl::StrCat("sweep ", manifest.name(), ": ",
                                  manifest.cell_size(), " cells\n");
  for (const SweepAxis& axis : manifest.axis()) {
    absl::StrAppend(&text, "axis ", axis.name(), ":");
    for (const std::string& path : axis.path())
      absl::StrAppend(&text, " ", path);
    absl::StrAppend(&text, "\n");
  }
  for (const SweepCell& cell : manifest.cell()) {
    absl::StrAppend(&text, cell.key(), "  ", CellName(manifest, cell), "  (",
                    cell.config().method_size(), " methods, ",
                    cell.config().dataset_size(), " datasets)\n");
  }
  return text;
}

// What every sweep ends with, wherever it ran.
absl::Status FinishSweep(const SweepFolder& folder) {
  KVMIX_ASSIGN_OR_RETURN(const Table table, WriteSweepTables(folder));
  std::cout << "\n"
            << table.Aligned() << "\nResults: " << folder.path() << "\n";
  return CheckAllDone(folder);
}

struct Flags {
  std::vector<std::string> overrides;
  std::string folder;
  int jobs = 0;
  int threads = 0;
  bool retry_failed = false;
  bool dry_run = false;
  bool slurm = false;
  SlurmOptions cluster;

  void AddTo(CommandLine& command_line);
  absl::Status Validate() const;
};

void Flags::AddTo(CommandLine& command_line) {
  command_line.Flag("set", &overrides,
                    "path=value, changes a field of the config");
  command_line.Flag("folder", &folder,
                    "of the results; <output>/<name>/sweep if empty");
  command_line.Flag("jobs", &jobs,
                    "cells that run at a time; more than one disturbs timings. "
                    "0: one, or with --slurm as many as the cluster gives");
  command_line.Flag("threads", &threads,
                    "of each cell; 0: the cores, divided by jobs, or with "
                    "--slurm one");
  command_line.Flag("retry_failed", &retry_failed,
                    "also run the cells that failed before");
  command_line.Flag("dry_run", &dry_run,
                    "print the cells, and with --slurm the scripts, and stop");
  command_line.Flag("slurm", &slurm,
                    "submit the cells as a job array, and a job behind it that "
                    "writes the report");
  command_line.Flag("partition", &cluster.partition, "with --slurm: sbatch's");
  command_line.Flag("account", &cluster.account, "with --slurm: sbatch's");
  command_line.Flag("time", &cluster.time,
                    "with --slurm: limit of a cell, as 2:00:00");
  command_line.Flag("memory", &cluster.memory,
                    "with --slurm: of a cell, as 8G");
  command_line.Flag("gpus", &cluster.gpus,
                    "with --slurm: of a cell, as 1 or a100:1");
}

absl::Status Flags::Validate() const {
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(jobs, 0, 1024, "--jobs"));
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(threads, 0, 1024, "--threads"));
  if (!slurm && !absl::StrCat(cluster.partition, cluster.account, cluster.time,
                              cluster.memory, cluster.gpus)
                     .empty()) {
    return UsageError(
        "--partition, --account, --time, --memory and --gpus are for --slurm");
  }
  return absl::OkStatus();
}

absl::Status RunHere(const SweepFolder& folder, const Flags& flags,
                     const std::atomic<bool>& stop) {
  const SweepOptions options = {.jobs = std::max(1, flags.jobs),
                                .threads = flags.threads,
                                .retry_failed = flags.retry_failed,
                                .program = ThisProgram()};
  KVMIX_RETURN_IF_ERROR(RunSweep(folder, options, stop).status());
  return FinishSweep(folder);
}

absl::Status PrintScripts(const SweepFolder& folder,
                          const SlurmOptions& options) {
  KVMIX_ASSIGN_OR_RETURN(const SlurmScripts scripts,
                         MakeSlurmScripts(folder, options, ThisProgram()));
  std::cout << "\n== " << folder.path() << "/slurm/array.sh\n"
            << scripts.array << "\n== " << folder.path() << "/slurm/report.sh\n"
            << scripts.report;
  return absl::OkStatus();
}

absl::Status RunOnCluster(const SweepFolder& folder,
                          const SlurmOptions& options) {
  KVMIX_ASSIGN_OR_RETURN(const std::string submitted,
                         SubmitToSlurm(folder, options));
  std::cout << submitted;
  return absl::OkStatus();
}

}  // namespace

absl::Status SweepCommand(absl::Span<const std::string> args,
                          const std::atomic<bool>& stop) {
  CommandLine command_line(
      "kvmix sweep CONFIG [flags]",
      "Runs an experiment for every combination of the values of its sweep's "
      "axes, each in a\nprocess of its own, and writes one table of all. "
      "Profiles and full precision are made\nonce for all cells that share "
      "them. The same command goes on where a sweep stopped,\nhowever it "
      "stopped.");
  Flags flags;
  flags.AddTo(command_line);
  KVMIX_ASSIGN_OR_RETURN(const std::vector<std::string> arguments,
                         command_line.Parse(args));
  if (arguments.size() != 1)
    return UsageError("takes one config file; see kvmix sweep --help");
  KVMIX_RETURN_IF_ERROR(flags.Validate());
  flags.cluster.at_a_time = flags.jobs;
  flags.cluster.threads = std::max(1, flags.threads);
  flags.cluster.retry_failed = flags.retry_failed;
  KVMIX_ASSIGN_OR_RETURN(const SweepManifest manifest,
                         LoadSweep(arguments[0], flags.overrides));
  if (flags.folder.empty()) {
    flags.folder = absl::StrCat(manifest.cell(0).config().output(), "/",
                                manifest.name(), "/sweep");
  }
  const std::string path =
      std::filesystem::absolute(ResolvePath(flags.folder)).lexically_normal();
  if (flags.dry_run) {
    std::cout << Plan(manifest);
    KVMIX_ASSIGN_OR_RETURN(const SweepFolder folder,
                           SweepFolder::Preview(path, manifest));
    return flags.slurm ? PrintScripts(folder, flags.cluster) : absl::OkStatus();
  }
  KVMIX_ASSIGN_OR_RETURN(const SweepFolder folder,
                         SweepFolder::Create(path, manifest));
  return flags.slurm ? RunOnCluster(folder, flags.cluster)
                     : RunHere(folder, flags, stop);
}

absl::Status TablesCommand(absl::Span<const std::string> args,
                           const std::atomic<bool>&) {
  CommandLine command_line(
      "kvmix tables FOLDER",
      "Writes the tables of a sweep's finished cells, as kvmix sweep does at "
      "its end, and says\nwhich cells are missing.");
  KVMIX_ASSIGN_OR_RETURN(const std::vector<std::string> arguments,
                         command_line.Parse(args));
  if (arguments.size() != 1)
    return UsageError("takes one folder; see kvmix tables --help");
  KVMIX_ASSIGN_OR_RETURN(const SweepFolder folder,
                         SweepFolder::Open(ResolvePath(arguments[0])));
  return FinishSweep(folder);
}

}  // namespace kvmix
