#include <iostream>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
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

std::string Summary(const StoredProfile& stored) {
  const ImportanceProfile& profile = stored.profile();
  const std::string made = absl::StrFormat(
      "%s over %d prompts, %d tokens, mean loss %.4f nats; unit %s\n",
      profile.estimator(), profile.num_prompts(), profile.num_tokens(),
      stored.mean_loss(), ImportanceProfile::Unit_Name(profile.unit()));
  if (stored.forward_seconds() == 0)
    return made + "No prompt was run: read from disk, or none was needed.\n";
  return made + absl::StrFormat(
                    "profile %.2f s, forward passes alone %.2f s, ratio %.2f\n",
                    stored.seconds(), stored.forward_seconds(),
                    stored.seconds() / stored.forward_seconds());
}

}  // namespace

absl::Status ProfileCommand(absl::Span<const std::string> args,
                            const std::atomic<bool>& stop) {
  CommandLine command_line(
      "kvmix profile [flags]",
      "Shows an importance estimator the config's prompts, or your own, and "
      "prints how much\nthe keys and values of every layer matter. Profiles "
      "are "
      "kept in OUTPUT/profiles/ and\nused again by runs with the same model, "
      "prompts and estimator.\nWhat it took stands beside the time of forward "
      "passes over the same prompts.");
  ConfigFlags flags;
  std::string estimator = "gradient_norm", file;
  flags.AddTo(command_line);
  command_line.Flag("estimator", &estimator,
                    "name, or { name: ... options {...} }; kvmix list shows "
                    "all");
  command_line.Flag("output_file", &file,
                    "write the profile there too, as a textproto");
  KVMIX_RETURN_IF_ERROR(command_line.ParseFlags(args));
  flags.overrides.push_back(absl::StrCat("importance_estimator=", estimator));
  KVMIX_ASSIGN_OR_RETURN(const ExperimentConfig config, flags.Load());
  KVMIX_ASSIGN_OR_RETURN(LoadedModel model,
                         LoadModel(config.model(), config.threads()));
  Method method;
  *method.mutable_importance_estimator() = config.importance_estimator();
  *method.mutable_quantizer() = config.quantizer();
  *method.mutable_candidate() = config.candidate();
  KVMIX_ASSIGN_OR_RETURN(
      const FormatChoices formats,
      FormatsToProfile(method, model.transformer->config().head_dim));
  ProfileRequest request =
      ProfileRequestOf(config, model, config.importance_estimator(), formats,
                       CachePlan::LAYER, &stop);
  request.time_forward = true;
  KVMIX_ASSIGN_OR_RETURN(const StoredProfile stored, Profile(model, request));
  std::cout << ProfileTable(stored.profile()).Aligned() << "\n"
            << Summary(stored) << request.folder << "/" << stored.key()
            << ".textproto\n";
  if (file.empty()) return absl::OkStatus();
  return WriteTextProto(stored.profile(), ResolvePath(file));
}

}  // namespace kvmix
