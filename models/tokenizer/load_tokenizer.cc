#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"
#include "models/tokenizer/json.h"
#include "models/tokenizer/readers.h"
#include "models/tokenizer/tokenizer.h"

namespace kvmix {
namespace {

std::optional<int32_t> FindToken(const PipelineSpec& spec,
                                 const std::string& text) {
  for (const AddedToken& token : spec.added_tokens)
    if (token.content == text) return token.id;
  for (size_t id = 0; id < spec.tokens.size(); ++id)
    if (spec.tokens[id].exists && spec.tokens[id].bytes == text) return id;
  return std::nullopt;
}

// The id of a token that the config names: by a string, or by an object with
// its content. nullopt if the config names none.
absl::StatusOr<std::optional<int32_t>> ReadTokenName(const JsonValue& config,
                                                     const std::string& key,
                                                     const PipelineSpec& spec) {
  const auto value = config.Find(key);
  if (!value) return std::nullopt;
  std::string text;
  if (value->json().is_object()) {
    KVMIX_ASSIGN_OR_RETURN(const JsonValue content, value->Get("content"));
    KVMIX_ASSIGN_OR_RETURN(text, content.String());
  } else {
    KVMIX_ASSIGN_OR_RETURN(text, value->String());
  }
  const auto id = FindToken(spec, text);
  if (!id) return value->Error("a token of the vocabulary");
  return id;
}

// Makes `ids` contain `id` at its outer end, or not at all.
void SetContains(bool wanted, int32_t id, bool at_front,
                 std::vector<int32_t>* ids) {
  const auto it = std::find(ids->begin(), ids->end(), id);
  if (wanted && it == ids->end())
    ids->insert(at_front ? ids->begin() : ids->end(), id);
  if (!wanted && it != ids->end()) ids->erase(it);
}

absl::StatusOr<std::string> ReadChatTemplate(const JsonValue& config) {
  const auto value = config.Find("chat_template");
  if (!value) return std::string();
  if (!value->json().is_array()) return value->String();
  KVMIX_ASSIGN_OR_RETURN(const auto templates, value->Array());
  for (const JsonValue& item : templates) {
    KVMIX_ASSIGN_OR_RETURN(const std::string name, item.StringOr("name", ""));
    if (name == "default") return item.StringOr("template", "");
  }
  return std::string();
}

// An explicit add_bos_token or add_eos_token wins over what the vocabulary's
// file says, as in Hugging Face's Llama tokenizers.
absl::Status ApplyTokenizerConfig(const JsonValue& config, PipelineSpec* spec) {
  KVMIX_ASSIGN_OR_RETURN(const auto bos,
                         ReadTokenName(config, "bos_token", *spec));
  KVMIX_ASSIGN_OR_RETURN(const auto eos,
                         ReadTokenName(config, "eos_token", *spec));
  if (bos) spec->bos_id = bos;
  if (eos) spec->eos_ids = {*eos};
  if (const auto add = config.Find("add_bos_token"); add && spec->bos_id) {
    KVMIX_ASSIGN_OR_RETURN(const bool wanted, add->Bool());
    SetContains(wanted, *spec->bos_id, /*at_front=*/true, &spec->prefix);
  }
  if (const auto add = config.Find("add_eos_token");
      add && !spec->eos_ids.empty()) {
    KVMIX_ASSIGN_OR_RETURN(const bool wanted, add->Bool());
    SetContains(wanted, spec->eos_ids[0], /*at_front=*/false, &spec->suffix);
  }
  KVMIX_ASSIGN_OR_RETURN(spec->chat_template, ReadChatTemplate(config));
  return absl::OkStatus();
}

// eos_token_id: one id or a list of them.
absl::Status ApplyGenerationConfig(const JsonValue& config,
                                   PipelineSpec* spec) {
  const auto value = config.Find("eos_token_id");
  if (!value) return absl::OkStatus();
  std::vector<JsonValue> items = {*value};
  if (value->json().is_array()) {
    KVMIX_ASSIGN_OR_RETURN(items, value->Array());
  }
  for (const JsonValue& item : items) {
    KVMIX_ASSIGN_OR_RETURN(const int64_t id, item.Int());
    if (id < 0 || id >= static_cast<int64_t>(spec->tokens.size()))
      return item.Error("the id of a token");
    auto& ids = spec->eos_ids;
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
  return absl::OkStatus();
}

absl::Status ApplyFileIfThere(const std::string& path,
                              absl::Status (*apply)(const JsonValue&,
                                                    PipelineSpec*),
                              PipelineSpec* spec) {
  if (!std::filesystem::exists(path)) return absl::OkStatus();
  KVMIX_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  const auto document = ParseJson(text);
  if (!document.ok()) return AddContext(document.status(), path);
  return AddContext(apply(JsonValue(*document, ""), spec), path);
}

absl::StatusOr<PipelineSpec> ReadVocabulary(const std::string& folder) {
  const std::string json_path = absl::StrCat(folder, "/tokenizer.json");
  const std::string model_path = absl::StrCat(folder, "/tokenizer.model");
  const bool has_json = std::filesystem::exists(json_path);
  if (!has_json && !std::filesystem::exists(model_path)) {
    return absl::NotFoundError(
        absl::StrCat(folder, " has no tokenizer.json and no tokenizer.model"));
  }
  if (!has_json && std::filesystem::exists(folder + "/added_tokens.json")) {
    return absl::UnimplementedError(
        absl::StrCat(folder,
                     " has added_tokens.json beside tokenizer.model; save the "
                     "tokenizer as tokenizer.json, which holds both"));
  }
  const std::string& path = has_json ? json_path : model_path;
  KVMIX_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
  auto spec =
      has_json ? ReadTokenizerJson(bytes) : ReadSentencePieceModel(bytes);
  if (!spec.ok()) return AddContext(spec.status(), path);
  return spec;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(
    const std::string& folder) {
  KVMIX_ASSIGN_OR_RETURN(PipelineSpec spec, ReadVocabulary(folder));
  KVMIX_RETURN_IF_ERROR(ApplyFileIfThere(folder + "/tokenizer_config.json",
                                         ApplyTokenizerConfig, &spec));
  KVMIX_RETURN_IF_ERROR(ApplyFileIfThere(folder + "/generation_config.json",
                                         ApplyGenerationConfig, &spec));
  const std::string template_path = folder + "/chat_template.jinja";
  if (std::filesystem::exists(template_path)) {
    KVMIX_ASSIGN_OR_RETURN(spec.chat_template, ReadFile(template_path));
  }
  auto tokenizer = MakePipeline(std::move(spec));
  if (!tokenizer.ok()) return AddContext(tokenizer.status(), folder);
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerJson(
    absl::string_view tokenizer_json) {
  KVMIX_ASSIGN_OR_RETURN(PipelineSpec spec, ReadTokenizerJson(tokenizer_json));
  return MakePipeline(std::move(spec));
}

}  // namespace kvmix
