#include "experiments/config_flags.h"

#include "absl/strings/str_cat.h"
#include "experiments/config.h"

namespace kvmix {

void ConfigFlags::AddTo(CommandLine& command_line) {
  command_line.Flag("config", &config, "experiment whose methods are meant");
  command_line.Flag("model", &model,
                    "a Hugging Face folder, a .gguf file, \"embedded\" or "
                    "\"smollm2\";\nthe config's if empty");
  command_line.Flag("prompts", &prompts,
                    "text file that profiles are made from, cut into prompts;\n"
                    "the config's if empty");
  command_line.Flag("set", &overrides,
                    "path=value, changes a field of the config; may be given "
                    "many times");
  command_line.Flag("threads", &threads,
                    "0: one for each core; -1: what the config says");
}

absl::StatusOr<ExperimentConfig> ConfigFlags::Load() const {
  std::vector<std::string> all;
  if (!model.empty()) all.push_back(absl::StrCat("model.path=", model));
  if (!prompts.empty()) {
    all.push_back("profile.dataset={}");
    all.push_back(absl::StrCat("profile.dataset.path=", prompts));
  }
  if (threads >= 0) all.push_back(absl::StrCat("threads=", threads));
  all.insert(all.end(), overrides.begin(), overrides.end());
  return LoadConfig(config, all);
}

absl::StatusOr<Method> FindMethod(const ExperimentConfig& config,
                                  const std::string& name) {
  if (name.empty()) return config.method(config.method_size() - 1);
  std::string names;
  for (const Method& method : config.method()) {
    if (method.name() == name) return method;
    absl::StrAppend(&names, names.empty() ? "" : ", ", method.name());
  }
  return absl::NotFoundError(
      absl::StrCat("the config has no method \"", name, "\"; it has ", names));
}

}  // namespace kvmix
