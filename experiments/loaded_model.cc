#include "experiments/loaded_model.h"

#include <algorithm>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "experiments/paths.h"
#include "kvmix/base/file.h"
#include "kvmix/base/fingerprint.h"
#include "kvmix/base/status_macros.h"
#include "models/model_files.h"

namespace kvmix {
namespace {

namespace fs = std::filesystem;

// The metadata's value if the key is there.
template <typename T>
absl::StatusOr<std::optional<T>> GetOptional(const GgufMetadata& metadata,
                                             absl::string_view key) {
  if (!metadata.Has(key)) return std::nullopt;
  KVMIX_ASSIGN_OR_RETURN(T value, metadata.Get<T>(key));
  return value;
}

absl::StatusOr<std::string> GetString(const GgufMetadata& metadata,
                                      absl::string_view key) {
  KVMIX_ASSIGN_OR_RETURN(const absl::string_view text,
                         metadata.GetOr<absl::string_view>(key, ""));
  return std::string(text);
}

// Its strings lie in the mapped file.
absl::StatusOr<GgufTokenizerData> TokenizerData(const GgufMetadata& metadata) {
  using Strings = std::vector<absl::string_view>;
  const auto key = [](const char* name) {
    return absl::StrCat("tokenizer.ggml.", name);
  };
  GgufTokenizerData data;
  KVMIX_ASSIGN_OR_RETURN(data.model, GetString(metadata, key("model")));
  KVMIX_ASSIGN_OR_RETURN(data.pre, GetString(metadata, key("pre")));
  KVMIX_ASSIGN_OR_RETURN(data.tokens,
                         metadata.GetOr<Strings>(key("tokens"), {}));
  KVMIX_ASSIGN_OR_RETURN(data.merges,
                         metadata.GetOr<Strings>(key("merges"), {}));
  KVMIX_ASSIGN_OR_RETURN(data.token_types, metadata.GetOr<std::vector<int64_t>>(
                                               key("token_type"), {}));
  KVMIX_ASSIGN_OR_RETURN(
      data.scores, metadata.GetOr<std::vector<double>>(key("scores"), {}));
  KVMIX_ASSIGN_OR_RETURN(data.bos_token_id,
                         GetOptional<int64_t>(metadata, key("bos_token_id")));
  KVMIX_ASSIGN_OR_RETURN(data.eos_token_id,
                         GetOptional<int64_t>(metadata, key("eos_token_id")));
  KVMIX_ASSIGN_OR_RETURN(data.eot_token_id,
                         GetOptional<int64_t>(metadata, key("eot_token_id")));
  KVMIX_ASSIGN_OR_RETURN(data.add_bos_token,
                         GetOptional<bool>(metadata, key("add_bos_token")));
  KVMIX_ASSIGN_OR_RETURN(data.add_eos_token,
                         GetOptional<bool>(metadata, key("add_eos_token")));
  KVMIX_ASSIGN_OR_RETURN(data.add_space_prefix,
                         GetOptional<bool>(metadata, key("add_space_prefix")));
  KVMIX_ASSIGN_OR_RETURN(
      data.remove_extra_whitespaces,
      GetOptional<bool>(metadata, key("remove_extra_whitespaces")));
  KVMIX_ASSIGN_OR_RETURN(data.chat_template,
                         GetString(metadata, "tokenizer.chat_template"));
  return data;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeTokenizer(
    const ModelFiles& files) {
  if (files.gguf_metadata == nullptr)
    return LoadTokenizer(files.tokenizer_folder);
  KVMIX_ASSIGN_OR_RETURN(const GgufTokenizerData data,
                         TokenizerData(*files.gguf_metadata));
  return LoadGgufTokenizer(data);
}

// What decides a model's results in a Hugging Face folder.
bool IsModelFile(const fs::path& path) {
  const std::string extension = path.extension().string();
  return extension == ".json" || extension == ".safetensors" ||
         extension == ".model";
}

ComputeType ComputeTypeOf(ModelSource::Compute compute) {
  if (compute == ModelSource::BFLOAT16) return ComputeType::kBFloat16;
  if (compute == ModelSource::INT8) return ComputeType::kInt8;
  return ComputeType::kFloat32;
}

}  // namespace

AttentionArithmetic ArithmeticOf(AttentionConfig::Arithmetic arithmetic) {
  return arithmetic == AttentionConfig::INT8 ? AttentionArithmetic::kInt8
                                             : AttentionArithmetic::kFloat;
}

RuntimeOptions RuntimeOptionsOf(const ModelSource& source, int threads) {
  return {.num_threads = threads,
          .compute = ComputeTypeOf(source.compute()),
          .attention = ArithmeticOf(source.attention_arithmetic())};
}

absl::StatusOr<LoadedModel> LoadModel(const ModelSource& source, int threads) {
  LoadedModel model;
  KVMIX_ASSIGN_OR_RETURN(model.path, ResolveModelPath(source.path()));
  KVMIX_ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(model.path));
  KVMIX_ASSIGN_OR_RETURN(model.tokenizer, MakeTokenizer(files));
  if (model.tokenizer->vocab_size() > files.config.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        model.path, ": the tokenizer has ", model.tokenizer->vocab_size(),
        " tokens but the model only ", files.config.vocab_size));
  }
  // Before the weights are in memory: it reads, and lets go of, all of the
  // file.
  KVMIX_ASSIGN_OR_RETURN(model.fingerprint, FingerprintModel(model.path));
  KVMIX_ASSIGN_OR_RETURN(model.transformer,
                         Transformer::Load(files.config, *files.weights,
                                           RuntimeOptionsOf(source, threads)));
  if (source.device() == ModelSource::CUDA) {
    KVMIX_ASSIGN_OR_RETURN(
        model.device,
        LoadCudaModel(files.config, *files.weights,
                      {.compute = ComputeTypeOf(source.compute())},
                      model.transformer->threads()));
    model.check_against_cpu = source.has_check_against();
  }
  return model;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerOf(
    const std::string& path) {
  KVMIX_ASSIGN_OR_RETURN(const std::string file, ResolveModelPath(path));
  // A folder may hold a tokenizer and no weights.
  std::error_code error;
  if (fs::is_directory(file, error)) return LoadTokenizer(file);
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> gguf,
                         GgufFile::Open(file));
  KVMIX_ASSIGN_OR_RETURN(const GgufTokenizerData data,
                         TokenizerData(*gguf->metadata()));
  return LoadGgufTokenizer(data);
}

absl::StatusOr<std::string> FingerprintModel(const std::string& path) {
  std::vector<fs::path> files;
  std::error_code error;
  if (fs::is_directory(path, error)) {
    for (const auto& entry : fs::directory_iterator(path, error))
      if (IsModelFile(entry.path())) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
  } else {
    files.push_back(path);
  }
  std::string contents;
  for (const fs::path& file : files) {
    KVMIX_ASSIGN_OR_RETURN(const MappedFile mapped,
                           MappedFile::Open(file.string()));
    absl::StrAppend(&contents, Fingerprint(mapped.view()), " ");
  }
  return Fingerprint(contents);
}

}  // namespace kvmix
