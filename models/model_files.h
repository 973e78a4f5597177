// Opens a model on disk: a folder in Hugging Face's layout, or a .gguf file.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "models/gguf.h"
#include "models/model_config.h"
#include "models/weight_source.h"

namespace kvmix {

struct ModelFiles {
  ModelConfig config;
  std::unique_ptr<WeightSource> weights;
  // Where the tokenizer is described; exactly one of the two is set.
  std::string tokenizer_folder;
  std::shared_ptr<const GgufMetadata> gguf_metadata;
};

// `path` is a folder with config.json and model.safetensors (or its shards and
// model.safetensors.index.json), or a .gguf file. Succeeds only when the file
// has every tensor that the configuration asks for, in its shape, and no tensor
// that the model would leave unused.
absl::StatusOr<ModelFiles> OpenModel(const std::string& path);

// The last check above, by itself.
absl::Status CheckWeights(const ModelConfig& config,
                          const WeightSource& weights);

}  // namespace kvmix
