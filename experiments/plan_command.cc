#include <iostream>

#include "absl/strings/str_cat.h"
#include "experiments/command_line.h"
#include "experiments/commands.h"
#include "experiments/config_flags.h"
#include "experiments/layer_tables.h"
#include "experiments/paths.h"
#include "experiments/run_experiment.h"
#include "experiments/text_proto.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

// Leaves only the method of that name.
absl::Status KeepMethod(const std::string& name, ExperimentConfig& config) {
  std::string names;
  for (const Method& method : config.method()) {
    if (method.name() == name) {
      const Method kept = method;
      config.clear_method();
      *config.add_method() = kept;
      return absl::OkStatus();
    }
    absl::StrAppend(&names, names.empty() ? "" : ", ", method.name());
  }
  return absl::NotFoundError(
      absl::StrCat("the config has no method \"", name, "\"; it has ", names));
}

}  // namespace

absl::Status PlanCommand(absl::Span<const std::string> args,
                         const std::atomic<bool>& stop) {
  CommandLine command_line(
      "kvmix plan [flags]",
      "Profiles if it must, allocates bits, and prints the plan of one method "
      "or of all.\nA plan written to a file can be edited and run: name it as "
      "plan_file of a method, or\nkvmix run CONFIG --set "
      "'method[1]={name: \"mine\" plan_file: \"plan.textproto\"}'.");
  ConfigFlags flags;
  std::string method, file;
  flags.AddTo(command_line);
  command_line.Flag("method", &method, "name of the method; all if empty");
  command_line.Flag("output_file", &file,
                    "write the method's plan there, as a textproto");
  KVMIX_ASSIGN_OR_RETURN(const std::vector<std::string> arguments,
                         command_line.Parse(args));
  if (command_line.wants_help()) {
    std::cout << command_line.Help();
    return absl::OkStatus();
  }
  if (!arguments.empty()) return UsageError("takes flags only");
  if (!file.empty() && method.empty())
    return UsageError("--output_file needs --method: a file holds one plan");
  KVMIX_ASSIGN_OR_RETURN(ExperimentConfig config, flags.Load());
  if (!method.empty()) KVMIX_RETURN_IF_ERROR(KeepMethod(method, config));
  KVMIX_ASSIGN_OR_RETURN(LoadedModel model,
                         LoadModel(config.model(), config.threads()));
  KVMIX_ASSIGN_OR_RETURN(const PreparedMethods prepared,
                         PrepareMethods(config, model, &stop));
  for (const RunnableMethod& runnable : prepared.methods) {
    KVMIX_ASSIGN_OR_RETURN(
        const std::string summary,
        PlanSummary(runnable.plan, model.transformer->config().head_dim));
    std::cout << runnable.name << ": " << summary << "\n"
              << PlanTable(runnable.plan).Aligned() << "\n";
  }
  if (file.empty()) return absl::OkStatus();
  return WriteTextProto(prepared.methods[0].plan, ResolvePath(file));
}

}  // namespace kvmix
