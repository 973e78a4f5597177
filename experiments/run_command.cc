#include <iostream>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "experiments/command_line.h"
#include "experiments/commands.h"
#include "experiments/config.h"
#include "experiments/paths.h"
#include "experiments/report.h"
#include "experiments/run_experiment.h"
#include "experiments/text_proto.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {

absl::Status RunCommand(absl::Span<const std::string> args,
                        const std::atomic<bool>& stop) {
  CommandLine command_line(
      "kvmix run CONFIG [flags]",
      "Runs an experiment: profiles, allocates bits, measures quality, memory "
      "and speed of\nevery method, and writes tables and figures to "
      "OUTPUT/<name>/<fingerprint>/. A run\nthat was interrupted goes on where "
      "it stopped.");
  std::vector<std::string> overrides;
  std::string output;
  int threads = -1;
  std::string device;
  bool dry_run = false;
  command_line.Flag("set", &overrides,
                    "path=value, changes a field of the config, as\n"
                    "method[2].bit_allocator.options.high_fraction=0.3 or "
                    "dataset.path=text.txt");
  command_line.Flag("output", &output,
                    "folder for results; the config's, or out, if empty");
  command_line.Flag("threads", &threads,
                    "0: one for each core; -1: what the config says");
  command_line.Flag("device", &device,
                    "cpu or cuda; what the config says if empty");
  command_line.Flag("dry_run", &dry_run, "check the config, print it and stop");
  KVMIX_ASSIGN_OR_RETURN(const std::vector<std::string> arguments,
                         command_line.Parse(args));
  if (arguments.size() != 1)
    return UsageError("takes one config file; see kvmix run --help");
  if (!output.empty()) overrides.push_back(absl::StrCat("output=", output));
  if (threads >= 0) overrides.push_back(absl::StrCat("threads=", threads));
  if (!device.empty()) {
    overrides.push_back(
        absl::StrCat("model.device=", absl::AsciiStrToUpper(device)));
  }
  KVMIX_ASSIGN_OR_RETURN(const ExperimentConfig config,
                         LoadConfig(arguments[0], overrides));
  if (dry_run) {
    std::cout << Describe(config) << "\n" << PrintTextProto(config);
    return absl::OkStatus();
  }
  KVMIX_ASSIGN_OR_RETURN(const ExperimentResult result,
                         RunExperiment(config, &stop));
  std::cout << "\n"
            << SummaryTable(result.record, result.timings).Aligned() << "\n"
            << SummaryNotes(result.record, result.timings)
            << "Results: " << result.folder << "\n";
  return absl::OkStatus();
}

}  // namespace kvmix
