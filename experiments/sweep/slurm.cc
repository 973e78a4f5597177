#include "experiments/sweep/slurm.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "experiments/paths.h"
#include "experiments/sweep/sweep.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

// As one word of a shell's line.
std::string Quoted(const std::string& text) {
  return absl::StrCat("'", absl::StrReplaceAll(text, {{"'", "'\\''"}}), "'");
}

// What sbatch reads behind #SBATCH is no shell's line: it has no way to hold
// every character.
absl::Status ValidateOption(const std::string& value, const char* name) {
  for (const char c : value) {
    if (absl::ascii_isalnum(c) || absl::StrContains("_-.,:=/@+", c)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("--", name, " is \"", value,
                     "\" but may hold letters, digits and _-.,:=/@+ only"));
  }
  return absl::OkStatus();
}

absl::Status ValidateFolder(const std::string& path) {
  if (path.find_first_of("\"\\%\n") == std::string::npos)
    return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--folder is ", path,
                   " but Slurm's logs cannot lie in a path with \", \\, % or "
                   "a line's end; give another one"));
}

std::string Directive(const char* option, const std::string& value) {
  return value.empty() ? "" : absl::StrCat("#SBATCH --", option, value, "\n");
}

std::string JobName(const SweepFolder& folder, const char* suffix) {
  std::string name = absl::StrCat("kvmix_", folder.manifest().name(), suffix);
  for (char& c : name) {
    if (!absl::ascii_isalnum(c)) c = '_';
  }
  return name;
}

// The first lines of both scripts. The job stands where this program does, so
// that paths in the config mean the same.
std::string Header(const std::string& name, const SlurmOptions& options,
                   const std::string& log, const std::string& directives) {
  std::string text =
      absl::StrCat("#!/bin/bash\n", Directive("job-name=", name),
                   Directive("output=", absl::StrCat("\"", log, "\"")),
                   "#SBATCH --open-mode=append\n#SBATCH --requeue\n",
                   Directive("partition=", options.partition),
                   Directive("account=", options.account),
                   Directive("time=", options.time), directives, "set -e\ncd ",
                   Quoted(std::filesystem::current_path().string()), "\n");
  if (const char* typed_in = std::getenv("BUILD_WORKING_DIRECTORY")) {
    absl::StrAppend(&text, "export BUILD_WORKING_DIRECTORY=", Quoted(typed_in),
                    "\n");
  }
  return text;
}

std::string ArrayScript(const SweepFolder& folder, const SlurmOptions& options,
                        const std::string& program,
                        const std::vector<std::string>& keys) {
  const std::string limit =
      options.at_a_time > 0 ? absl::StrCat("%", options.at_a_time) : "";
  const std::string directives = absl::StrCat(
      Directive("array=", absl::StrCat("0-", keys.size() - 1, limit)),
      Directive("cpus-per-task=", absl::StrCat(options.threads)),
      Directive("mem=", options.memory), Directive("gres=gpu:", options.gpus));
  return absl::StrCat(
      Header(JobName(folder, ""), options, folder.path() + "/slurm/%A_%a.log",
             directives),
      "keys=(", absl::StrJoin(keys, " "), ")\nkey=${keys[$SLURM_ARRAY_TASK_ID]",
      "}\ncell=", Quoted(folder.path() + "/cells/"),
      "$key\nmkdir -p \"$cell\"\nexec ", Quoted(program), " cell ",
      Quoted(folder.path()), " \"$key\" --threads=", options.threads,
      " >> \"$cell/log.txt\" 2>&1\n");
}

// The report comes first: it also shows what cells are missing.
std::string ReportScript(const SweepFolder& folder, const SlurmOptions& options,
                         const std::string& program) {
  return absl::StrCat(Header(JobName(folder, "_report"), options,
                             folder.path() + "/slurm/report.log", ""),
                      Quoted(program), " report ", Quoted(folder.path()),
                      " --output=", Quoted(folder.path() + "/report"),
                      "\nexec ", Quoted(program), " tables ",
                      Quoted(folder.path()), "\n");
}

// What a command prints; its errors go where this program's go.
absl::StatusOr<std::string> OutputOf(const std::string& command) {
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr)
    return absl::InternalError(absl::StrCat("cannot run ", command));
  std::string output;
  char buffer[256];
  while (fgets(buffer, sizeof(buffer), pipe) != nullptr) output += buffer;
  if (pclose(pipe) == 0) return std::string(absl::StripAsciiWhitespace(output));
  return absl::UnavailableError(absl::StrCat(
      command,
      " failed, for the reason above; --slurm needs a machine from "
      "which sbatch submits to a cluster (sinfo shows it)"));
}

// The job's number. sbatch prints it, or "number;cluster".
absl::StatusOr<std::string> Submit(const std::string& arguments) {
  KVMIX_ASSIGN_OR_RETURN(
      const std::string output,
      OutputOf(absl::StrCat("sbatch --parsable ", arguments)));
  return output.substr(0, output.find(';'));
}

absl::Status ForgetFailures(const SweepFolder& folder) {
  for (const SweepCell& cell : folder.manifest().cell()) {
    if (folder.StateOf(cell) == SweepFolder::State::kFailed)
      KVMIX_RETURN_IF_ERROR(folder.ForgetFailure(cell));
  }
  return absl::OkStatus();
}

absl::Status CheckNothingIsQueued(const std::string& jobs_file) {
  if (!PathExists(jobs_file)) return absl::OkStatus();
  KVMIX_ASSIGN_OR_RETURN(std::string jobs, ReadFile(jobs_file));
  absl::StripAsciiWhitespace(&jobs);
  // An error of squeue: it has forgotten them.
  const absl::StatusOr<std::string> queue = OutputOf(
      absl::StrCat("squeue --noheader --jobs=", jobs, " 2> /dev/null"));
  if (!queue.ok() || queue->empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("jobs ", jobs,
                   " of this sweep are still in Slurm's queue; "
                   "wait for them, or end them with scancel"));
}

}  // namespace

absl::StatusOr<SlurmScripts> MakeSlurmScripts(const SweepFolder& folder,
                                              const SlurmOptions& options,
                                              const std::string& program) {
  KVMIX_RETURN_IF_ERROR(ValidateOption(options.partition, "partition"));
  KVMIX_RETURN_IF_ERROR(ValidateOption(options.account, "account"));
  KVMIX_RETURN_IF_ERROR(ValidateOption(options.time, "time"));
  KVMIX_RETURN_IF_ERROR(ValidateOption(options.memory, "memory"));
  KVMIX_RETURN_IF_ERROR(ValidateOption(options.gpus, "gpus"));
  KVMIX_RETURN_IF_ERROR(ValidateFolder(folder.path()));
  std::vector<std::string> keys;
  for (const SweepCell& cell : folder.manifest().cell()) {
    const SweepFolder::State state = folder.StateOf(cell);
    if (state == SweepFolder::State::kOpen ||
        (state == SweepFolder::State::kFailed && options.retry_failed))
      keys.push_back(cell.key());
  }
  if (keys.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("no cell in ", folder.path(),
                     " is left to run; --retry_failed runs those again that "
                     "failed"));
  }
  return SlurmScripts{.tasks = static_cast<int>(keys.size()),
                      .array = ArrayScript(folder, options, program, keys),
                      .report = ReportScript(folder, options, program)};
}

absl::StatusOr<std::string> SubmitToSlurm(const SweepFolder& folder,
                                          const SlurmOptions& options) {
  KVMIX_ASSIGN_OR_RETURN(const FileLock lock, LockSweep(folder));
  const std::string slurm = folder.path() + "/slurm";
  KVMIX_RETURN_IF_ERROR(CheckNothingIsQueued(slurm + "/jobs.txt"));
  KVMIX_ASSIGN_OR_RETURN(const SlurmScripts scripts,
                         MakeSlurmScripts(folder, options, ThisProgram()));
  const std::string array = slurm + "/array.sh", report = slurm + "/report.sh";
  KVMIX_RETURN_IF_ERROR(WriteFileAtomically(array, scripts.array));
  KVMIX_RETURN_IF_ERROR(WriteFileAtomically(report, scripts.report));
  if (options.retry_failed) KVMIX_RETURN_IF_ERROR(ForgetFailures(folder));
  KVMIX_ASSIGN_OR_RETURN(const std::string id, Submit(Quoted(array)));
  absl::StatusOr<std::string> report_id =
      Submit(absl::StrCat("--dependency=afterany:", id, " ", Quoted(report)));
  absl::Status status = report_id.status();
  if (status.ok()) {
    status = WriteFileAtomically(slurm + "/jobs.txt",
                                 absl::StrCat(id, ",", *report_id, "\n"));
  }
  if (!status.ok()) {
    OutputOf(absl::StrCat("scancel ", id)).IgnoreError();
    return status;
  }
  return absl::StrCat("job array ", id, ": ", scripts.tasks, " of ",
                      folder.manifest().cell_size(), " cells; then job ",
                      *report_id, ": ", folder.path(), "/report/report.html\n");
}

}  // namespace kvmix
