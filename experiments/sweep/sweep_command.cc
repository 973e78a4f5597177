#include <iostream>

#include "absl/strings/str_cat.h"
#include "experiments/command_line.h"
#include "experiments/commands.h"
#include "experiments/paths.h"
#include "experiments/sweep/expand.h"
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

absl::Status Failed(const SweepFolder& folder, const SweepOutcome& outcome) {
  if (outcome.failed.empty()) return absl::OkStatus();
  std::string text =
      absl::StrCat(outcome.failed.size(), " of ", folder.manifest().cell_size(),
                   " cells failed; --retry_failed runs them "
                   "again");
  for (const SweepCell* cell : outcome.failed) {
    absl::StrAppend(&text, "\n  ", CellName(folder.manifest(), *cell), ": ",
                    folder.Failure(*cell), " (", folder.CellPath(*cell),
                    "/log.txt)");
  }
  return absl::AbortedError(text);
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
  std::vector<std::string> overrides;
  std::string folder_path;
  SweepOptions options;
  bool dry_run = false;
  command_line.Flag("set", &overrides,
                    "path=value, changes a field of the config");
  command_line.Flag("folder", &folder_path,
                    "of the results; <output>/<name>/sweep if empty");
  command_line.Flag("jobs", &options.jobs,
                    "cells that run at a time; more than one disturbs timings");
  command_line.Flag("threads", &options.threads,
                    "of each cell; 0: the cores, divided by jobs");
  command_line.Flag("retry_failed", &options.retry_failed,
                    "also run the cells that failed before");
  command_line.Flag("dry_run", &dry_run, "print the cells and stop");
  KVMIX_ASSIGN_OR_RETURN(const std::vector<std::string> arguments,
                         command_line.Parse(args));
  if (arguments.size() != 1)
    return UsageError("takes one config file; see kvmix sweep --help");
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(options.jobs, 1, 1024, "--jobs"));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(options.threads, 0, 1024, "--threads"));
  KVMIX_ASSIGN_OR_RETURN(const SweepManifest manifest,
                         LoadSweep(arguments[0], overrides));
  if (dry_run) {
    std::cout << Plan(manifest);
    return absl::OkStatus();
  }
  if (folder_path.empty()) {
    folder_path = absl::StrCat(manifest.cell(0).config().output(), "/",
                               manifest.name(), "/sweep");
  }
  KVMIX_ASSIGN_OR_RETURN(
      const SweepFolder folder,
      SweepFolder::Create(ResolvePath(folder_path), manifest));
  KVMIX_ASSIGN_OR_RETURN(const SweepOutcome outcome,
                         RunSweep(folder, options, stop));
  KVMIX_ASSIGN_OR_RETURN(const Table table, WriteSweepTables(folder));
  std::cout << "\n"
            << table.Aligned() << "\nResults: " << folder.path() << "\n";
  return Failed(folder, outcome);
}

}  // namespace kvmix
