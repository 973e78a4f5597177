#include "experiments/windows.h"

#include <utf8proc.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "experiments/paths.h"
#include "experiments/synthetic/synthetic_text.h"
#include "experiments/tasks/document_window.h"
#include "experiments/tasks/task.h"
#include "kvmix/base/file.h"
#include "kvmix/base/fingerprint.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

using Tokens = std::vector<int32_t>;

constexpr EncodeOptions kTextOnly = {.add_special_tokens = false};

absl::Status CheckUtf8(absl::string_view text, const std::string& path) {
  utf8proc_ssize_t at = 0;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  const auto size = static_cast<utf8proc_ssize_t>(text.size());
  while (at < size) {
    utf8proc_int32_t codepoint;
    const utf8proc_ssize_t n =
        utf8proc_iterate(bytes + at, size - at, &codepoint);
    if (n <= 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, " is not UTF-8 text: invalid byte at offset ", at));
    }
    at += n;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadText(const Dataset& dataset) {
  KVMIX_ASSIGN_OR_RETURN(const std::string path,
                         ResolveInputPath(dataset.path()));
  KVMIX_ASSIGN_OR_RETURN(std::string text, ReadFile(path));
  if (absl::StripAsciiWhitespace(text).empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " holds no text to score"));
  }
  KVMIX_RETURN_IF_ERROR(CheckUtf8(text, path));
  return text;
}

// Windows of a text file and the text tokens that they used up.
struct TextWindows {
  std::vector<Window> windows;
  int64_t used_tokens = 0;
};

absl::StatusOr<TextWindows> CutText(const Dataset& dataset,
                                    int64_t context_length, int64_t skip_tokens,
                                    const Tokenizer& tokenizer) {
  KVMIX_ASSIGN_OR_RETURN(const std::string text, ReadText(dataset));
  KVMIX_ASSIGN_OR_RETURN(const std::optional<int32_t> bos,
                         LeadingBos(tokenizer));
  const int64_t length = context_length - (bos ? 1 : 0);
  const int64_t limit =
      dataset.max_tokens() > 0 ? dataset.max_tokens() : INT64_MAX;
  TextWindows result;
  if (dataset.split() == Dataset::LINES) {
    int64_t to_skip = skip_tokens;
    for (absl::string_view line : absl::StrSplit(text, '\n')) {
      KVMIX_ASSIGN_OR_RETURN(Tokens ids, tokenizer.Encode(line, kTextOnly));
      if (ids.size() > static_cast<size_t>(length)) ids.resize(length);
      if (ids.size() < 2 || absl::StripAsciiWhitespace(line).empty()) continue;
      const int64_t count = static_cast<int64_t>(ids.size());
      if (to_skip > 0) {
        to_skip -= count;
        continue;
      }
      if (result.used_tokens + count > limit) break;
      result.used_tokens += count;
      result.windows.push_back(TextWindow(ids, bos, tokenizer));
    }
    return result;
  }
  KVMIX_ASSIGN_OR_RETURN(const Tokens ids, tokenizer.Encode(text, kTextOnly));
  const int64_t end =
      std::min<int64_t>(static_cast<int64_t>(ids.size()) - skip_tokens, limit);
  int64_t at = 0;
  for (; end - at >= length; at += length) {
    result.windows.push_back(
        TextWindow(absl::MakeConstSpan(ids).subspan(skip_tokens + at, length),
                   bos, tokenizer));
  }
  // A text shorter than one window is a window.
  if (result.windows.empty() && end >= 2) {
    result.windows.push_back(TextWindow(
        absl::MakeConstSpan(ids).subspan(skip_tokens, end), bos, tokenizer));
    at = end;
  }
  result.used_tokens = at;
  return result;
}

SyntheticTextOptions DocumentOptions(const SyntheticDocuments& synthetic) {
  SyntheticTextOptions options;
  options.tokens = synthetic.tokens();
  // A story has none, but the generator wants a valid number.
  if (synthetic.facts() > 0) options.facts = synthetic.facts();
  options.questions = synthetic.questions();
  options.confusable = synthetic.confusable();
  options.copy_length = synthetic.copy_length();
  options.hops = synthetic.hops();
  return options;
}

absl::StatusOr<std::vector<Window>> MakeDocuments(const Dataset& dataset,
                                                  uint64_t seed, int first,
                                                  int count,
                                                  const Tokenizer& tokenizer) {
  KVMIX_ASSIGN_OR_RETURN(const SyntheticTask task,
                         ParseSyntheticTask(dataset.synthetic().task()));
  const SyntheticTextOptions options = DocumentOptions(dataset.synthetic());
  std::vector<Window> windows;
  for (int i = first; i < first + count; ++i) {
    KVMIX_ASSIGN_OR_RETURN(const SyntheticDocument document,
                           GenerateSyntheticDocument(task, options, seed, i));
    KVMIX_ASSIGN_OR_RETURN(Window window, DocumentWindow(document, tokenizer));
    windows.push_back(std::move(window));
  }
  return windows;
}

absl::StatusOr<std::vector<Window>> TaskSamples(const Dataset& dataset,
                                                int limit, uint64_t seed,
                                                const Tokenizer& tokenizer,
                                                int64_t max_position) {
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<Task> task,
                         Registry<Task>::Get().Make(dataset.task(), "task"));
  return task->Samples({.tokenizer = &tokenizer,
                        .seed = seed,
                        .max_position = max_position,
                        .limit = limit});
}

absl::Status CheckLength(const std::vector<Window>& windows,
                         const std::string& name, int64_t max_position) {
  for (const Window& window : windows) {
    if (static_cast<int64_t>(window.tokens.size()) > max_position) {
      return absl::InvalidArgumentError(absl::StrCat(
          "dataset ", name, " has a window of ", window.tokens.size(),
          " tokens but the model's context is ", max_position,
          "; make context_length (of a text) or tokens (of documents) "
          "smaller"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Tokens>> TooFewPrompts(size_t have, int want) {
  return absl::InvalidArgumentError(absl::StrCat(
      "profile.num_prompts is ", want, " but the text holds only ", have,
      " prompts", have > 0 ? "" : " behind the evaluated tokens",
      "; lower profile.num_prompts or profile.prompt_tokens, or name a "
      "profile.dataset"));
}

// `count` of the windows, evenly spread.
std::vector<Tokens> Spread(std::vector<Window> windows, int count) {
  std::vector<Tokens> prompts;
  for (int i = 0; i < count; ++i)
    prompts.push_back(std::move(windows[i * windows.size() / count].tokens));
  return prompts;
}

}  // namespace

absl::StatusOr<std::vector<Window>> LoadWindows(const Dataset& dataset,
                                                uint64_t seed,
                                                const Tokenizer& tokenizer,
                                                int64_t max_position) {
  std::vector<Window> windows;
  if (dataset.has_task()) {
    absl::StatusOr<std::vector<Window>> samples =
        TaskSamples(dataset, dataset.limit(), seed, tokenizer, max_position);
    if (!samples.ok()) {
      return AddContext(samples.status(),
                        absl::StrCat("dataset ", dataset.name()));
    }
    windows = *std::move(samples);
  } else if (dataset.has_synthetic()) {
    absl::StatusOr<std::vector<Window>> documents = MakeDocuments(
        dataset, seed, 0, dataset.synthetic().documents(), tokenizer);
    if (!documents.ok()) {
      return AddContext(documents.status(),
                        absl::StrCat("dataset ", dataset.name()));
    }
    windows = *std::move(documents);
  } else {
    if (dataset.context_length() > max_position) {
      return absl::InvalidArgumentError(
          absl::StrCat("dataset ", dataset.name(), ": context_length is ",
                       dataset.context_length(), " but the model's context is ",
                       max_position));
    }
    KVMIX_ASSIGN_OR_RETURN(
        TextWindows text,
        CutText(dataset, dataset.context_length(), 0, tokenizer));
    windows = std::move(text.windows);
  }
  if (windows.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("dataset ", dataset.name(),
                     " has no window of two tokens or more to score"));
  }
  KVMIX_RETURN_IF_ERROR(CheckLength(windows, dataset.name(), max_position));
  return windows;
}

absl::StatusOr<std::vector<Tokens>> LoadPrompts(const ExperimentConfig& config,
                                                const Tokenizer& tokenizer,
                                                int64_t max_position) {
  const ProfileConfig& profile = config.profile();
  const int count = profile.num_prompts();
  const bool own = profile.has_dataset();
  Dataset dataset = own ? profile.dataset() : config.dataset(0);
  const int64_t length =
      std::min<int64_t>(profile.prompt_tokens(), max_position);
  if (dataset.has_task()) {
    // Those of a text would be scored, too: a profile's own dataset avoids it.
    KVMIX_ASSIGN_OR_RETURN(
        std::vector<Window> windows,
        TaskSamples(dataset, own ? count : 0, config.seed() + (own ? 0 : 1),
                    tokenizer, max_position));
    for (Window& window : windows) {
      if (static_cast<int64_t>(window.tokens.size()) > length)
        window.tokens.resize(length);
    }
    if (windows.size() < static_cast<size_t>(count))
      return TooFewPrompts(windows.size(), count);
    return Spread(std::move(windows), count);
  }
  if (dataset.has_synthetic()) {
    KVMIX_ASSIGN_OR_RETURN(
        std::vector<Window> windows,
        MakeDocuments(dataset, config.seed(),
                      own ? 0 : dataset.synthetic().documents(), count,
                      tokenizer));
    for (Window& window : windows) {
      if (static_cast<int64_t>(window.tokens.size()) > length)
        window.tokens.resize(length);
    }
    return Spread(std::move(windows), count);
  }
  int64_t evaluated = 0;
  if (!own) {
    KVMIX_ASSIGN_OR_RETURN(
        const TextWindows text,
        CutText(dataset, dataset.context_length(), 0, tokenizer));
    evaluated = text.used_tokens;
    dataset.clear_max_tokens();
  }
  KVMIX_ASSIGN_OR_RETURN(TextWindows text,
                         CutText(dataset, length, evaluated, tokenizer));
  if (text.windows.size() < static_cast<size_t>(count))
    return TooFewPrompts(text.windows.size(), count);
  return Spread(std::move(text.windows), count);
}

std::string FingerprintOf(const std::vector<Tokens>& sequences) {
  std::string bytes;
  for (const Tokens& tokens : sequences) {
    const int64_t size = static_cast<int64_t>(tokens.size());
    bytes.append(reinterpret_cast<const char*>(&size), sizeof(size));
    bytes.append(reinterpret_cast<const char*>(tokens.data()),
                 tokens.size() * sizeof(int32_t));
  }
  return Fingerprint(bytes);
}

}  // namespace kvmix
