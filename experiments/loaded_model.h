// A model that is ready to run, with its tokenizer.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "experiments/experiment.pb.h"
#include "experiments/method_caches.h"
#include "models/tokenizer/tokenizer.h"
#include "models/transformer.h"

namespace kvmix {

struct LoadedModel {
  std::string path;         // resolved
  std::string fingerprint;  // of the files' contents
  std::unique_ptr<Transformer> transformer;
  std::unique_ptr<DeviceModel> device;  // null: the CPU runs everything
  bool check_against_cpu = false;
  std::unique_ptr<Tokenizer> tokenizer;

  int64_t max_position() const { return transformer->config().max_position; }
  WhereToRun where_to_run() const {
    return {.cpu = transformer.get(),
            .device = device.get(),
            .check_against_cpu = check_against_cpu};
  }
};

AttentionArithmetic ArithmeticOf(AttentionConfig::Arithmetic arithmetic);

// How the runtime computes what `source` asks for; threads: 0, one for each
// core.
RuntimeOptions RuntimeOptionsOf(const ModelSource& source, int threads);

absl::StatusOr<LoadedModel> LoadModel(const ModelSource& source, int threads);

// The tokenizer alone, without reading weights. `path` as in ModelSource.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerOf(
    const std::string& path);

// Of a file's contents, or of the configuration, tokenizer and weights in a
// folder.
absl::StatusOr<std::string> FingerprintModel(const std::string& path);

}  // namespace kvmix
