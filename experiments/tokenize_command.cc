#include <iostream>

#include "absl/strings/str_cat.h"
#include "experiments/command_line.h"
#include "experiments/commands.h"
#include "experiments/loaded_model.h"
#include "experiments/paths.h"
#include "experiments/token_file.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {

absl::Status TokenizeCommand(absl::Span<const std::string> args,
                             const std::atomic<bool>&) {
  CommandLine command_line(
      "kvmix tokenize --model=PATH --text-file=FILE [flags]",
      "Prints the token ids of a text, one a line; or with --decode the text "
      "of ids.");
  std::string path = "embedded", text_file, ids_file;
  bool decode = false, special = false, parse_special = false;
  command_line.Flag("model", &path,
                    "a Hugging Face folder, a .gguf file, \"embedded\" or "
                    "\"smollm2\"");
  command_line.Flag("text-file", &text_file, "text to encode");
  command_line.Flag("special", &special,
                    "add BOS and EOS where the model's file says so");
  command_line.Flag("parse_special", &parse_special,
                    "read the text of special tokens as tokens");
  command_line.Flag("decode", &decode, "print the text of --ids-file instead");
  command_line.Flag("ids-file", &ids_file, "ids to decode, one a line");
  KVMIX_ASSIGN_OR_RETURN(const std::vector<std::string> arguments,
                         command_line.Parse(args));
  if (!arguments.empty() || (decode ? ids_file : text_file).empty()) {
    return UsageError(decode ? "--decode needs --ids-file"
                             : "needs --text-file; see kvmix tokenize --help");
  }
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                         LoadTokenizerOf(path));
  if (decode) {
    KVMIX_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                           ReadTokenFile(ids_file));
    KVMIX_ASSIGN_OR_RETURN(
        const std::string text,
        tokenizer->Decode(ids, {.keep_special_tokens = special}));
    std::cout << text << std::flush;
  } else {
    KVMIX_ASSIGN_OR_RETURN(const std::string file, ResolveInputPath(text_file));
    KVMIX_ASSIGN_OR_RETURN(const std::string text, ReadFile(file));
    KVMIX_ASSIGN_OR_RETURN(
        const std::vector<int32_t> ids,
        tokenizer->Encode(text, {.add_special_tokens = special,
                                 .parse_special_tokens = parse_special}));
    for (int32_t id : ids) std::cout << id << '\n';
    std::cout << std::flush;
  }
  if (!std::cout) return absl::DataLossError("cannot write standard output");
  return absl::OkStatus();
}

}  // namespace kvmix
