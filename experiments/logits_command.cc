#include <iostream>

#include "absl/strings/str_cat.h"
#include "experiments/command_line.h"
#include "experiments/commands.h"
#include "experiments/loaded_model.h"
#include "experiments/npy.h"
#include "experiments/paths.h"
#include "experiments/runtime_flags.h"
#include "experiments/stages.h"
#include "experiments/token_file.h"
#include "kvmix/base/file.h"
#include "kvmix/base/progress_bar.h"
#include "kvmix/base/status_macros.h"
#include "models/backward.h"

namespace kvmix {
namespace {

absl::StatusOr<std::vector<int32_t>> ReadTokens(const Tokenizer& tokenizer,
                                                const std::string& text_file,
                                                const std::string& ids_file) {
  if (!ids_file.empty()) return ReadTokenFile(ids_file);
  KVMIX_ASSIGN_OR_RETURN(const std::string file, ResolveInputPath(text_file));
  KVMIX_ASSIGN_OR_RETURN(const std::string text, ReadFile(file));
  return tokenizer.Encode(text);
}

// Shows `consume` the logits of all tokens in order, with a cache in half
// precision.
absl::Status CachedLogits(Transformer& model,
                          const std::vector<int32_t>& tokens,
                          const LogitsConsumer& consume) {
  constexpr size_t kChunkTokens = 256;  // changes no result
  KVMIX_ASSIGN_OR_RETURN(const RunnableMethod full,
                         FullPrecision(model.cache_shape()));
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<KvCache> cache,
                         MakeCache(model, full));
  for (size_t at = 0; at < tokens.size(); at += kChunkTokens) {
    const Chunk chunk = {absl::MakeConstSpan(tokens).subspan(at, kChunkTokens),
                         cache.get(), WantLogits::kAll};
    KVMIX_RETURN_IF_ERROR(model.Forward({&chunk, 1}, consume));
  }
  return absl::OkStatus();
}

// exact: keys and values in float, in one pass.
absl::Status WriteLogits(Transformer& model, const std::vector<int32_t>& tokens,
                         bool exact, const std::string& path,
                         const std::atomic<bool>& stop) {
  const int64_t num_tokens = static_cast<int64_t>(tokens.size());
  KVMIX_ASSIGN_OR_RETURN(
      NpyWriter writer,
      NpyWriter::Create(path, num_tokens, model.config().vocab_size));
  ProgressBar bar("logits", num_tokens, "tokens");
  const LogitsConsumer write = [&](int, int64_t, int64_t num_rows,
                                   const float* logits) -> absl::Status {
    if (stop) return absl::CancelledError("interrupted");
    bar.Advance(num_rows);
    return writer.Append(logits, num_rows);
  };
  KVMIX_RETURN_IF_ERROR(exact ? ExactLogits(model, tokens, write)
                              : CachedLogits(model, tokens, write));
  return writer.Finish();
}

}  // namespace

absl::Status LogitsCommand(absl::Span<const std::string> args,
                           const std::atomic<bool>& stop) {
  CommandLine command_line(
      "kvmix logits --model=PATH --text-file=FILE --output=logits.npy [flags]",
      "Writes the logits of every token of a text, float32 [tokens, "
      "vocabulary], as NumPy's\n.npy, so that they can be compared with those "
      "of another framework. Keys and values\nare cached in half precision, "
      "unless --exact. BOS comes first where the model's file\nsays so.");
  std::string path = "embedded", text_file, ids_file, output;
  ComputeFlag compute;
  int64_t max_tokens = 0;
  int threads = 0;
  bool exact = false;
  command_line.Flag("model", &path,
                    "a Hugging Face folder, a .gguf file, \"embedded\" or "
                    "\"smollm2\"");
  command_line.Flag("text-file", &text_file, "UTF-8 text");
  command_line.Flag("ids-file", &ids_file,
                    "token ids, one a line, instead of a text");
  command_line.Flag("output", &output, "the .npy file");
  command_line.Flag("max_tokens", &max_tokens, "stop after so many; 0: all");
  command_line.Flag("exact", &exact,
                    "keys and values in float, without a cache, in one pass");
  compute.AddTo(command_line);
  command_line.Flag("threads", &threads, "0: one for each core");
  KVMIX_ASSIGN_OR_RETURN(const std::vector<std::string> arguments,
                         command_line.Parse(args));
  if (!arguments.empty() || output.empty() ||
      text_file.empty() == ids_file.empty()) {
    return UsageError(
        "needs --output and one of --text-file and --ids-file; see kvmix "
        "logits --help");
  }
  ModelSource source;
  source.set_path(path);
  KVMIX_RETURN_IF_ERROR(compute.Apply(source));
  if (max_tokens < 0) return UsageError("--max_tokens is a count");
  KVMIX_ASSIGN_OR_RETURN(LoadedModel model, LoadModel(source, threads));
  KVMIX_ASSIGN_OR_RETURN(std::vector<int32_t> tokens,
                         ReadTokens(*model.tokenizer, text_file, ids_file));
  if (max_tokens > 0 && static_cast<int64_t>(tokens.size()) > max_tokens)
    tokens.resize(max_tokens);
  if (tokens.empty()) return absl::InvalidArgumentError("the text is empty");
  if (static_cast<int64_t>(tokens.size()) > model.max_position()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the text has ", tokens.size(), " tokens but the model's context is ",
        model.max_position(), "; set --max_tokens"));
  }
  return WriteLogits(*model.transformer, tokens, exact, ResolvePath(output),
                     stop);
}

}  // namespace kvmix
