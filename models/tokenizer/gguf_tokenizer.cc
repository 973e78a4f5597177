// Tokenizers from the tokenizer.ggml.* metadata of GGUF files.
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kvmix/base/status_macros.h"
#include "models/tokenizer/readers.h"
#include "models/tokenizer/tokenizer.h"

namespace kvmix {
namespace {

using Vocab = SentencePieceVocab;

// What a value of tokenizer.ggml.pre stands for.
struct PreTokenizerKind {
  const char* name;
  const char* pattern;
  bool isolate_digits = false;
  bool ignore_merges = false;
  bool nfc = false;
  bool add_bos = false;  // where the file does not say
};

constexpr PreTokenizerKind MakeGpt2(const char* name) {
  return {name, kGpt2Pattern};
}
constexpr PreTokenizerKind MakeDigits(const char* name) {
  return {name, kGpt2Pattern, /*isolate_digits=*/true};
}
constexpr PreTokenizerKind MakeLlama3(const char* name) {
  return {name,
          kLlama3Pattern,
          false,
          /*ignore_merges=*/true,
          false,
          /*add_bos=*/true};
}
constexpr PreTokenizerKind MakeQwen2(const char* name) {
  return {name, kQwen2Pattern, false, false, /*nfc=*/true};
}

constexpr PreTokenizerKind kPreTokenizers[] = {
    MakeGpt2("gpt-2"),       MakeGpt2("phi-2"),
    MakeGpt2("olmo"),        MakeDigits("smollm"),
    MakeDigits("codeshell"), MakeDigits("exaone"),
    MakeDigits("starcoder"), MakeDigits("refact"),
    MakeDigits("command-r"), MakeLlama3("llama-bpe"),
    MakeLlama3("llama3"),    MakeLlama3("llama-v3"),
    MakeQwen2("qwen2"),      MakeQwen2("deepseek-r1-qwen"),
};

absl::StatusOr<PreTokenizerKind> FindPreTokenizer(const std::string& name) {
  std::vector<std::string> names;
  for (const PreTokenizerKind& kind : kPreTokenizers) {
    if (kind.name == name) return kind;
    names.push_back(kind.name);
  }
  return absl::UnimplementedError(
      absl::StrCat("tokenizer.ggml.pre is \"", absl::CHexEscape(name),
                   "\"; implemented: ", absl::StrJoin(names, ", ")));
}

absl::StatusOr<PreTokenizer> MakePreTokenizer(const PreTokenizerKind& kind) {
  PreTokenizer pre_tokenizer;
  const auto add = [&](absl::string_view pattern) -> absl::Status {
    KVMIX_ASSIGN_OR_RETURN(Regex regex, Regex::Compile(pattern));
    pre_tokenizer.AddSplit(std::move(regex), PreTokenizer::Behavior::kIsolated,
                           /*invert=*/false);
    return absl::OkStatus();
  };
  if (kind.isolate_digits) KVMIX_RETURN_IF_ERROR(add("\\p{N}"));
  KVMIX_RETURN_IF_ERROR(add(kind.pattern));
  return pre_tokenizer;
}

absl::Status AddVocab(const GgufTokenizerData& data, PipelineSpec* pipeline,
                      RankedBpeSpec* bpe) {
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    const absl::string_view text = data.tokens[id];
    const int64_t type = data.token_types.empty() ? int64_t{Vocab::kNormal}
                                                  : data.token_types[id];
    PipelineSpec::Token token;
    token.bytes = std::string(text);
    if (type == Vocab::kControl || type == Vocab::kUserDefined) {
      token.special = type == Vocab::kControl;
      AddedToken added;
      added.content = token.bytes;
      added.id = id;
      added.special = token.special;
      pipeline->added_tokens.push_back(added);
    } else if (const auto bytes = FromByteAlphabet(text)) {
      token.bytes = *bytes;
      const auto [other, inserted] = bpe->vocab.try_emplace(*bytes, id);
      if (!inserted) {
        return absl::InvalidArgumentError(absl::StrCat(
            "tokenizer.ggml.tokens[", id, "] is \"", absl::CHexEscape(text),
            "\", as is tokens[", other->second, "]"));
      }
    }
    KVMIX_RETURN_IF_ERROR(pipeline->AddToken(id, std::move(token)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::pair<std::string, std::string>> ParseMerge(
    absl::string_view merge, size_t index) {
  const auto error = [&](absl::string_view reason) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.ggml.merges[", index, "] is \"",
                     absl::CHexEscape(merge), "\" but ", reason));
  };
  const size_t space = merge.find(' ');
  if (space == merge.npos || merge.find(' ', space + 1) != merge.npos)
    return error("must be two tokens with one space between");
  const auto left = FromByteAlphabet(merge.substr(0, space));
  const auto right = FromByteAlphabet(merge.substr(space + 1));
  if (!left || !right) return error("must be in the byte alphabet of GPT-2");
  return std::pair(*left, *right);
}

absl::StatusOr<PipelineSpec> ReadByteLevel(const GgufTokenizerData& data) {
  KVMIX_ASSIGN_OR_RETURN(const PreTokenizerKind kind,
                         FindPreTokenizer(data.pre));
  PipelineSpec pipeline;
  RankedBpeSpec bpe;
  KVMIX_RETURN_IF_ERROR(AddVocab(data, &pipeline, &bpe));
  for (size_t i = 0; i < data.merges.size(); ++i) {
    KVMIX_ASSIGN_OR_RETURN(auto merge, ParseMerge(data.merges[i], i));
    bpe.merges.push_back(std::move(merge));
  }
  bpe.ignore_merges = kind.ignore_merges;
  if (kind.nfc) pipeline.normalizer.AddNfc();
  KVMIX_ASSIGN_OR_RETURN(pipeline.pre_tokenizer, MakePreTokenizer(kind));
  KVMIX_ASSIGN_OR_RETURN(pipeline.word_encoder, MakeRankedBpe(bpe));
  if (data.bos_token_id && data.add_bos_token.value_or(kind.add_bos))
    pipeline.prefix = {static_cast<int32_t>(*data.bos_token_id)};
  return pipeline;
}

absl::StatusOr<PipelineSpec> ReadSentencePiece(const GgufTokenizerData& data) {
  if (data.scores.size() != data.tokens.size() || data.token_types.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.ggml.scores has ", data.scores.size(),
                     " entries and token_type ", data.token_types.size(),
                     " but model \"llama\" needs one of each for its ",
                     data.tokens.size(), " tokens"));
  }
  SentencePieceVocab vocab;
  vocab.pieces.reserve(data.tokens.size());
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    vocab.pieces.push_back({std::string(data.tokens[id]),
                            static_cast<float>(data.scores[id]),
                            data.token_types[id]});
    if (data.token_types[id] == Vocab::kUnknown)
      vocab.unknown_surface = std::string(data.tokens[id]);
  }
  vocab.add_dummy_prefix = data.add_space_prefix.value_or(true);
  vocab.remove_extra_whitespaces =
      data.remove_extra_whitespaces.value_or(false);
  KVMIX_ASSIGN_OR_RETURN(PipelineSpec pipeline, BuildSentencePiece(vocab));
  if (data.bos_token_id && data.add_bos_token.value_or(true))
    pipeline.prefix = {static_cast<int32_t>(*data.bos_token_id)};
  return pipeline;
}

absl::Status CheckIds(const GgufTokenizerData& data) {
  const int64_t size = data.tokens.size();
  if (size == 0) {
    return absl::InvalidArgumentError("tokenizer.ggml.tokens is empty");
  }
  if (size > kMaxVocabSize) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.ggml.tokens has ", size, " entries; at most ",
                     kMaxVocabSize, " are accepted"));
  }
  if (!data.token_types.empty() &&
      static_cast<int64_t>(data.token_types.size()) != size) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.ggml.token_type has ", data.token_types.size(),
                     " entries but tokens has ", size));
  }
  const std::pair<const char*, std::optional<int64_t>> ids[] = {
      {"bos", data.bos_token_id},
      {"eos", data.eos_token_id},
      {"eot", data.eot_token_id}};
  for (const auto& [name, id] : ids) {
    if (id && (*id < 0 || *id >= size)) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer.ggml.", name, "_token_id is ", *id,
                       " but must be in [0, ", size, ")"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<PipelineSpec> ReadGguf(const GgufTokenizerData& data) {
  KVMIX_RETURN_IF_ERROR(CheckIds(data));
  if (data.model == "gpt2") return ReadByteLevel(data);
  if (data.model == "llama") return ReadSentencePiece(data);
  return absl::UnimplementedError(
      absl::StrCat("tokenizer.ggml.model is \"", absl::CHexEscape(data.model),
                   "\"; implemented: gpt2 (byte-level BPE), llama "
                   "(SentencePiece BPE)"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadGgufTokenizer(
    const GgufTokenizerData& data) {
  KVMIX_ASSIGN_OR_RETURN(PipelineSpec pipeline, ReadGguf(data));
  if (data.bos_token_id) pipeline.bos_id = *data.bos_token_id;
  if (data.eos_token_id) pipeline.eos_ids.push_back(*data.eos_token_id);
  if (data.eot_token_id && data.eot_token_id != data.eos_token_id)
    pipeline.eos_ids.push_back(*data.eot_token_id);
  if (data.eos_token_id && data.add_eos_token.value_or(false))
    pipeline.suffix = {static_cast<int32_t>(*data.eos_token_id)};
  pipeline.chat_template = data.chat_template;
  return MakePipeline(std::move(pipeline));
}

}  // namespace kvmix
