#include <iostream>
#include <limits>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "experiments/command_line.h"
#include "experiments/commands.h"
#include "experiments/config_flags.h"
#include "experiments/layer_tables.h"
#include "experiments/paths.h"
#include "experiments/run_experiment.h"
#include "experiments/text_proto.h"
#include "kvmix/allocation/choice_table.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

// The table of what other formats would have cost, or why there is none:
// without a budget bytes are those of blocks alone.
absl::StatusOr<std::string> Alternatives(const ExperimentConfig& config,
                                         const Method& method,
                                         const CachePlan& plan,
                                         const ImportanceProfile& profile,
                                         const CacheShape& shape) {
  KVMIX_ASSIGN_OR_RETURN(
      std::unique_ptr<BudgetedFormats> formats,
      FormatsUnderBudget(method, shape, config.evaluation()));
  if (formats == nullptr) {
    formats = std::make_unique<BudgetedFormats>();
    KVMIX_ASSIGN_OR_RETURN(formats->choices,
                           OfferedFormats(method, shape.head_dim));
    formats->costs =
        std::make_unique<BlockCosts>(shape.num_kv_heads, shape.head_dim);
    formats->budget_bytes = std::numeric_limits<int64_t>::max();
  }
  const absl::StatusOr<ChoiceTable> choices =
      LossesOfChoices(profile,
                      {.num_layers = shape.num_layers,
                       .num_kv_heads = shape.num_kv_heads,
                       .head_dim = shape.head_dim,
                       .granularity = method.granularity(),
                       .choices = &formats->choices,
                       .costs = formats->costs.get(),
                       .budget_bytes = formats->budget_bytes},
                      /*trust_scores=*/false);
  if (!choices.ok()) {
    return absl::StrCat("What other formats would have cost is not known: ",
                        choices.status().message(), "\n");
  }
  return absl::StrFormat(
      "Predicted loss, %s, and what the other formats would change it and the "
      "bytes of %d elements by:\n%s",
      ImportanceProfile::Unit_Name(profile.unit()), formats->costs->elements(),
      AlternativesTable(plan, formats->choices, *choices).Aligned());
}

}  // namespace

absl::Status PlanCommand(absl::Span<const std::string> args,
                         const std::atomic<bool>& stop) {
  CommandLine command_line(
      "kvmix plan [flags]",
      "Profiles if it must, allocates bits, and prints the plan of one method "
      "or of all, with\nwhat other formats would have cost where the profile "
      "predicts losses.\nA plan written to a file can be edited and run: name "
      "it as plan_file of a method, or\nkvmix run CONFIG --set "
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
  for (size_t m = 0; m < prepared.methods.size(); ++m) {
    const RunnableMethod& runnable = prepared.methods[m];
    KVMIX_ASSIGN_OR_RETURN(
        const std::string summary,
        PlanSummary(runnable.plan, model.transformer->config().head_dim));
    std::cout << runnable.name << ": " << summary << "\n"
              << PlanTable(runnable.plan).Aligned() << "\n";
    const ImportanceProfile* profile = prepared.ProfileOf(m);
    if (profile == nullptr) continue;
    KVMIX_ASSIGN_OR_RETURN(
        const std::string alternatives,
        Alternatives(config, config.method(static_cast<int>(m)), runnable.plan,
                     *profile, model.transformer->cache_shape()));
    std::cout << alternatives << "\n";
  }
  if (file.empty()) return absl::OkStatus();
  return WriteTextProto(prepared.methods[0].plan, ResolvePath(file));
}

}  // namespace kvmix
