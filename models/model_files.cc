#include "models/model_files.h"

#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"
#include "models/quote.h"
#include "models/safetensors.h"

namespace kvmix {
namespace {

// Tensors found in real files that the model rightly leaves unread: RoPE
// frequencies, which the configuration gives, and the copy of a tied embedding.
bool MayBeUnused(const ModelConfig& config, absl::string_view name) {
  return absl::EndsWith(name, ".rotary_emb.inv_freq") ||
         name == "rope_freqs.weight" ||
         (config.tie_embeddings && name == "lm_head.weight");
}

// A token list longer than the embedding would let a prompt name rows that are
// not there.
absl::Status CheckTokenList(const GgufMetadata& metadata,
                            const ModelConfig& config) {
  constexpr char kKey[] = "tokenizer.ggml.tokens";
  KVMIX_ASSIGN_OR_RETURN(
      const std::vector<absl::string_view> tokens,
      metadata.GetOr<std::vector<absl::string_view>>(kKey, {}));
  if (tokens.size() <= static_cast<size_t>(config.vocab_size))
    return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("GGUF metadata \"", kKey, "\" has ", tokens.size(),
                   " tokens but the embedding has ", config.vocab_size,
                   " rows; the file is damaged"));
}

absl::StatusOr<ModelFiles> OpenGguf(const std::string& path) {
  KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  ModelFiles model;
  absl::StatusOr<ModelConfig> config = ParseGgufConfig(*file);
  if (!config.ok()) return AddContext(config.status(), path);
  model.config = *std::move(config);
  model.gguf_metadata = file->metadata();
  KVMIX_RETURN_IF_ERROR(
      AddContext(CheckTokenList(*model.gguf_metadata, model.config), path));
  model.weights = std::move(file);
  KVMIX_RETURN_IF_ERROR(
      AddContext(CheckWeights(model.config, *model.weights), path));
  return model;
}

absl::StatusOr<ModelFiles> OpenFolder(const std::string& folder) {
  KVMIX_ASSIGN_OR_RETURN(
      const MappedFile config_json,
      MappedFile::Open(absl::StrCat(folder, "/config.json")));
  absl::StatusOr<MappedFile> generation =
      MappedFile::Open(absl::StrCat(folder, "/generation_config.json"));
  if (!generation.ok() && !absl::IsNotFound(generation.status()))
    return generation.status();
  ModelFiles model;
  absl::StatusOr<ModelConfig> config = ParseHuggingFaceConfig(
      config_json.view(), generation.ok() ? generation->view() : "");
  if (!config.ok()) return AddContext(config.status(), folder);
  model.config = *std::move(config);
  KVMIX_ASSIGN_OR_RETURN(model.weights, SafetensorsFiles::OpenFolder(folder));
  KVMIX_RETURN_IF_ERROR(
      AddContext(CheckWeights(model.config, *model.weights), folder));
  model.tokenizer_folder = folder;
  return model;
}

}  // namespace

absl::Status CheckWeights(const ModelConfig& config,
                          const WeightSource& weights) {
  std::set<absl::string_view> expected_names;
  const std::vector<ExpectedTensor> expected = ExpectedTensors(config);
  for (const ExpectedTensor& tensor : expected) {
    KVMIX_ASSIGN_OR_RETURN(const TensorInfo* const info,
                           weights.Find(tensor.name));
    if (info->shape != tensor.shape)
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor ", Quote(tensor.name), " has shape ", ShapeText(info->shape),
          " but the configuration asks for ", ShapeText(tensor.shape)));
    expected_names.insert(tensor.name);
  }
  for (const TensorInfo& info : weights.tensors())
    if (!expected_names.contains(info.name) && !MayBeUnused(config, info.name))
      return absl::UnimplementedError(absl::StrCat(
          "tensor ", Quote(info.name), " is no part of a ", config.family,
          " model of ", config.num_layers,
          " layers, so the model may compute what KVmix does not; use a plain ",
          config.family, " model"));
  return absl::OkStatus();
}

absl::StatusOr<ModelFiles> OpenModel(const std::string& path) {
  std::error_code error;
  const auto kind = std::filesystem::status(path, error).type();
  if (kind == std::filesystem::file_type::directory) return OpenFolder(path);
  if (kind == std::filesystem::file_type::not_found)
    return absl::NotFoundError(
        absl::StrCat("model ", Quote(path),
                     " does not exist; give a folder with "
                     "config.json and model.safetensors, or a .gguf file"));
  if (absl::EndsWith(path, ".safetensors"))
    return absl::InvalidArgumentError(
        absl::StrCat("model ", Quote(path),
                     " is a weight file; give its folder, which also "
                     "has config.json"));
  return OpenGguf(path);
}

}  // namespace kvmix
