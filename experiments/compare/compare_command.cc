#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "experiments/command_line.h"
#include "experiments/commands.h"
#include "experiments/compare/compare_estimators.h"
#include "experiments/config.h"
#include "experiments/config_flags.h"
#include "experiments/layer_tables.h"
#include "experiments/offered_formats.h"
#include "experiments/paths.h"
#include "experiments/text_proto.h"
#include "experiments/windows.h"
#include "kvmix/base/file.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"
#include "kvmix/importance/importance_estimator.h"

namespace kvmix {
namespace {

// A name, or { name: ... options {...} }.
absl::StatusOr<Component> ParseEstimator(const std::string& text) {
  Component estimator;
  if (text.find(':') == std::string::npos) {
    estimator.set_name(text);
  } else {
    const size_t first = text.find('{'), last = text.rfind('}');
    const bool braces = text[0] == '{' && last != std::string::npos;
    KVMIX_RETURN_IF_ERROR(
        ParseTextProto(braces ? text.substr(first + 1, last - first - 1) : text,
                       "--estimator", estimator));
  }
  KVMIX_RETURN_IF_ERROR(Registry<ImportanceEstimator>::Get()
                            .Make(estimator, "importance_estimator")
                            .status());
  return estimator;
}

absl::StatusOr<std::vector<Component>> ParseEstimators(
    std::vector<std::string> texts, const std::string& oracle) {
  if (texts.empty()) {
    for (const std::string& name : Registry<ImportanceEstimator>::Get().Names())
      if (name != oracle) texts.push_back(name);
  }
  std::vector<Component> estimators;
  for (const std::string& text : texts) {
    KVMIX_ASSIGN_OR_RETURN(Component estimator, ParseEstimator(text));
    estimators.push_back(std::move(estimator));
  }
  return estimators;
}

std::string Notes(const Comparison& comparison, const std::string& format,
                  const std::string& model) {
  return absl::StrFormat(
      "Scores of layers stored in %s, %s, %d prompts of %d tokens in all.\n"
      "rho, tau: Spearman's and Kendall's rank correlation with %s; 95 %%: "
      "over bootstrap resamples of the prompts.\nK+V: keys and values of all "
      "layers in one ranking, for scores that mean a loss or an error.\n"
      "halves: rho between two halves of the prompts, mean of random halves; "
      "seeds: between prompts of two seeds.\n"
      "seconds: for all prompts; forward passes alone %.2f s.\n",
      format, model, comparison.num_prompts, comparison.num_tokens,
      comparison.oracle, comparison.forward_seconds);
}

}  // namespace

absl::Status CompareEstimatorsCommand(absl::Span<const std::string> args,
                                      const std::atomic<bool>& stop) {
  CommandLine command_line(
      "kvmix compare_estimators [flags]",
      "Runs importance estimators on the same prompts and prints how well each "
      "ranks layers,\nbeside an oracle that quantizes them one at a time, how "
      "far its ranking depends on the\nprompts, and what it costs. Writes "
      "estimators.md, .csv and .svg into OUTPUT/NAME/.");
  ConfigFlags flags;
  std::vector<std::string> estimators;
  std::string oracle = "leave_one_out";
  int resamples = 1000, seeds = 1, bits = 0;
  flags.AddTo(command_line);
  command_line.Flag("estimator", &estimators,
                    "name, or { name: ... options {...} }; may be given many "
                    "times;\nall that are linked if none is");
  command_line.Flag("oracle", &oracle, "what the others are compared with");
  command_line.Flag("bits", &bits,
                    "of the format that is looked at; 0: the candidates'");
  command_line.Flag("resamples", &resamples, "of the bootstrap");
  command_line.Flag("seeds", &seeds,
                    "makes synthetic prompts and random scores so many times");
  KVMIX_RETURN_IF_ERROR(command_line.ParseFlags(args));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(resamples, 1, 1 << 20, "--resamples"));
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(seeds, 1, 1000, "--seeds"));
  KVMIX_ASSIGN_OR_RETURN(const ExperimentConfig config, flags.Load());
  CompareOptions options;
  options.trial_chunk_tokens = config.profile().trial_chunk_tokens();
  options.seed = config.seed();
  options.resamples = resamples;
  options.seeds = seeds;
  options.stop = &stop;
  KVMIX_ASSIGN_OR_RETURN(options.oracle, ParseEstimator(oracle));
  KVMIX_ASSIGN_OR_RETURN(options.estimators,
                         ParseEstimators(estimators, options.oracle.name()));
  KVMIX_ASSIGN_OR_RETURN(LoadedModel model,
                         LoadModel(config.model(), config.threads()));
  Method method;
  *method.mutable_quantizer() = config.quantizer();
  *method.mutable_candidate() = config.candidate();
  if (bits != 0) {
    method.clear_candidate();
    method.add_candidate()->set_bits(bits);
  }
  KVMIX_ASSIGN_OR_RETURN(
      options.formats,
      OfferedFormats(method, model.transformer->config().head_dim));
  // One format is enough to rank layers, and each more is another trial.
  options.formats.mutable_key()->DeleteSubrange(1,
                                                options.formats.key_size() - 1);
  options.formats.mutable_value()->DeleteSubrange(
      1, options.formats.value_size() - 1);
  options.prompts = [&](uint64_t seed) {
    ExperimentConfig seeded = config;
    seeded.set_seed(seed);
    return LoadPrompts(seeded, *model.tokenizer, model.max_position());
  };
  KVMIX_ASSIGN_OR_RETURN(const Comparison comparison,
                         CompareEstimators(model, options));
  const std::string format =
      absl::StrCat("keys ", FormatText(options.formats.key(0)), "; values ",
                   FormatText(options.formats.value(0)));
  const std::string notes = Notes(comparison, format, config.model().path());
  const Table table = ComparisonTable(comparison);
  std::cout << table.Aligned() << "\n" << notes;
  const std::string base = absl::StrCat(ResolvePath(config.output()), "/",
                                        config.name(), "/estimators");
  KVMIX_RETURN_IF_ERROR(
      WriteFileAtomically(base + ".md", table.Markdown() + "\n" + notes));
  KVMIX_RETURN_IF_ERROR(WriteFileAtomically(
      base + ".csv", FullComparisonTable(comparison).Csv()));
  KVMIX_RETURN_IF_ERROR(WriteFileAtomically(
      base + ".svg",
      ComparisonSvg(comparison,
                    absl::StrCat("rank correlation with ", comparison.oracle,
                                 ", ", config.model().path()))));
  std::cout << base << ".md, .csv, .svg\n";
  return absl::OkStatus();
}

}  // namespace kvmix
