#include <iostream>

#include "experiments/command_line.h"
#include "experiments/commands.h"
#include "experiments/config_flags.h"
#include "experiments/layer_tables.h"
#include "experiments/paths.h"
#include "experiments/run_experiment.h"
#include "experiments/text_proto.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {

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
  KVMIX_RETURN_IF_ERROR(command_line.ParseFlags(args));
  if (!file.empty() && method.empty())
    return UsageError("--output_file needs --method: a file holds one plan");
  KVMIX_ASSIGN_OR_RETURN(ExperimentConfig config, flags.Load());
  if (!method.empty()) {
    KVMIX_ASSIGN_OR_RETURN(const Method kept, FindMethod(config, method));
    config.clear_method();
    *config.add_method() = kept;
  }
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
