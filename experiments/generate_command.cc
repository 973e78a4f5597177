#include <algorithm>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "experiments/command_line.h"
#include "experiments/commands.h"
#include "experiments/config_flags.h"
#include "experiments/paths.h"
#include "experiments/run_experiment.h"
#include "experiments/text_proto.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"
#include "models/generate.h"

namespace kvmix {
namespace {

struct Continuation {
  Generation generation;
  MemoryLedger ledger;
};

absl::StatusOr<Continuation> Continue(LoadedModel& model,
                                      const RunnableMethod& method,
                                      const std::vector<int32_t>& prompt,
                                      const GenerateOptions& options) {
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<KvCache> cache,
                         MakeCache(*model.transformer, method));
  Continuation result;
  KVMIX_ASSIGN_OR_RETURN(result.generation,
                         Generate(*model.transformer, prompt, *cache, options,
                                  /*on_token=*/nullptr));
  result.ledger = cache->ledger();
  return result;
}

absl::Status Print(const std::string& name, const Tokenizer& tokenizer,
                   const std::vector<int32_t>& prompt,
                   const Continuation& result) {
  KVMIX_ASSIGN_OR_RETURN(const std::string text,
                         tokenizer.Decode(result.generation.tokens));
  const Generation& run = result.generation;
  const double kib = static_cast<double>(result.ledger.total()) / 1024;
  std::cout << absl::StrFormat(
      "--- %s: cache %.1f KiB, prefill %.0f tok/s, decode %.1f tok/s\n%s\n\n",
      name, kib, prompt.size() / run.prefill_seconds,
      run.decode_passes > 0 ? run.decode_passes / run.decode_seconds : 0.0,
      text);
  return absl::OkStatus();
}

// Tokens from the start that both continuations share.
size_t SharedTokens(const std::vector<int32_t>& a,
                    const std::vector<int32_t>& b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first -
         a.begin();
}

// The named method, or the last one; or a plan from a file with that method's
// policies.
absl::Status ChooseMethod(const std::string& name, const std::string& plan_file,
                          ExperimentConfig& config) {
  KVMIX_ASSIGN_OR_RETURN(Method chosen, FindMethod(config, name));
  if (!plan_file.empty()) {
    KVMIX_ASSIGN_OR_RETURN(const std::string path, ResolveInputPath(plan_file));
    chosen.clear_bit_allocator();
    chosen.clear_importance_estimator();
    KVMIX_RETURN_IF_ERROR(ReadTextProto(path, *chosen.mutable_plan()));
    chosen.set_name(plan_file);
  }
  config.clear_method();
  *config.add_method() = chosen;
  return absl::OkStatus();
}

}  // namespace

absl::Status GenerateCommand(absl::Span<const std::string> args,
                             const std::atomic<bool>& stop) {
  CommandLine command_line(
      "kvmix generate --model=PATH --prompt=TEXT [flags]",
      "Continues a prompt twice, with the cache in full precision and under a "
      "method of a\nconfig (or a plan from a file), and prints the texts, the "
      "sizes of the caches and the\nspeeds.");
  ConfigFlags flags;
  GenerateOptions options;
  std::string prompt, prompt_file, method_name, plan_file;
  int64_t seed = 0;
  flags.AddTo(command_line);
  command_line.Flag("prompt", &prompt, "text to continue");
  command_line.Flag("prompt_file", &prompt_file, "file of that text");
  command_line.Flag("method", &method_name,
                    "method of the config; its last one if empty");
  command_line.Flag("plan", &plan_file,
                    "plan to run with that method's policies, as kvmix plan "
                    "writes it");
  command_line.Flag("max_tokens", &options.max_new_tokens,
                    "tokens to generate");
  command_line.Flag("temperature", &options.sampling.temperature,
                    "0: always the most likely token");
  command_line.Flag("top_k", &options.sampling.top_k,
                    "sample among the k most likely tokens; 0: all");
  command_line.Flag("top_p", &options.sampling.top_p,
                    "sample among the fewest tokens of this probability");
  command_line.Flag("seed", &seed, "of the sampling");
  KVMIX_ASSIGN_OR_RETURN(const std::vector<std::string> arguments,
                         command_line.Parse(args));
  if (!arguments.empty() || prompt.empty() == prompt_file.empty())
    return UsageError("needs one of --prompt and --prompt_file");
  options.sampling.seed = static_cast<uint64_t>(seed);
  if (!prompt_file.empty()) {
    KVMIX_ASSIGN_OR_RETURN(const std::string file,
                           ResolveInputPath(prompt_file));
    KVMIX_ASSIGN_OR_RETURN(prompt, ReadFile(file));
  }
  KVMIX_ASSIGN_OR_RETURN(ExperimentConfig config, flags.Load());
  KVMIX_RETURN_IF_ERROR(ChooseMethod(method_name, plan_file, config));
  if (config.model().device() != ModelSource::CPU) {
    return absl::UnimplementedError(
        "generate runs on the CPU alone; set model.device to CPU");
  }
  KVMIX_ASSIGN_OR_RETURN(LoadedModel model,
                         LoadModel(config.model(), config.threads()));
  KVMIX_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                         model.tokenizer->Encode(prompt));
  if (tokens.empty()) return absl::InvalidArgumentError("the prompt is empty");
  if (static_cast<int64_t>(tokens.size()) + options.max_new_tokens >
      model.max_position()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a prompt of ", tokens.size(), " tokens and --max_tokens ",
        options.max_new_tokens, " do not fit in the model's context of ",
        model.max_position()));
  }
  KVMIX_ASSIGN_OR_RETURN(const PreparedMethods prepared,
                         PrepareMethods(config, model, &stop));
  KVMIX_ASSIGN_OR_RETURN(const RunnableMethod full,
                         FullPrecision(model.transformer->cache_shape()));
  KVMIX_ASSIGN_OR_RETURN(const Continuation exact,
                         Continue(model, full, tokens, options));
  KVMIX_ASSIGN_OR_RETURN(const Continuation compressed,
                         Continue(model, prepared.methods[0], tokens, options));
  if (stop) return absl::CancelledError("interrupted");
  KVMIX_RETURN_IF_ERROR(Print(full.name, *model.tokenizer, tokens, exact));
  KVMIX_RETURN_IF_ERROR(
      Print(prepared.methods[0].name, *model.tokenizer, tokens, compressed));
  std::cout << absl::StrFormat(
      "The first %d of %d tokens are the same; the cache is %.2fx smaller.\n",
      SharedTokens(exact.generation.tokens, compressed.generation.tokens),
      exact.generation.tokens.size(),
      static_cast<double>(exact.ledger.total()) / compressed.ledger.total());
  return absl::OkStatus();
}

}  // namespace kvmix
