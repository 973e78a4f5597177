#include "experiments/bench/bench_model.h"

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "experiments/loaded_model.h"
#include "experiments/paths.h"
#include "kvmix/base/random.h"
#include "kvmix/base/status_macros.h"
#include "models/model_files.h"
#include "models/random_model.h"

namespace kvmix {
namespace {

// Types that random weights can be stored as; MakeRandomWeights.
absl::StatusOr<ElementType> StoredType(const std::string& name) {
  std::string names;
  for (const ElementType type :
       {ElementType::kF32, ElementType::kF16, ElementType::kBF16,
        ElementType::kQ8_0, ElementType::kQ4_0, ElementType::kQ4_1}) {
    const absl::string_view known = LayoutOf(type).name;
    if (absl::EqualsIgnoreCase(known, name)) return type;
    absl::StrAppend(&names, names.empty() ? "" : ", ", known);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--weights is \"", name, "\" but must be one of ", names));
}

// The weights of a shape, or of a path.
struct Source {
  ModelConfig config;
  std::unique_ptr<WeightSource> weights;
};

absl::StatusOr<Source> OpenSource(const BenchModelOptions& options) {
  Source source;
  if (options.shape.empty()) {
    KVMIX_ASSIGN_OR_RETURN(const std::string path,
                           ResolveModelPath(options.model.path()));
    KVMIX_ASSIGN_OR_RETURN(ModelFiles files, OpenModel(path));
    return Source{std::move(files.config), std::move(files.weights)};
  }
  KVMIX_ASSIGN_OR_RETURN(source.config, RandomModelConfig(options.shape));
  KVMIX_ASSIGN_OR_RETURN(const ElementType stored, StoredType(options.weights));
  KVMIX_ASSIGN_OR_RETURN(source.weights,
                         MakeRandomWeights(source.config, stored, kBenchSeed));
  return source;
}

}  // namespace

absl::Status ValidateBenchModel(const BenchModelOptions& options) {
  if (options.shape.empty() != options.model.path().empty())
    return absl::OkStatus();
  return absl::InvalidArgumentError(
      "give one of --shape (random weights) and --model (a path)");
}

std::string BenchModelName(const BenchModelOptions& options) {
  if (options.shape.empty()) return options.model.path();
  return absl::StrCat(options.shape, " ",
                      absl::AsciiStrToUpper(options.weights));
}

absl::StatusOr<std::unique_ptr<Transformer>> LoadBenchTransformer(
    const BenchModelOptions& options, int64_t num_threads) {
  KVMIX_ASSIGN_OR_RETURN(const Source source, OpenSource(options));
  KVMIX_ASSIGN_OR_RETURN(
      std::unique_ptr<Transformer> transformer,
      Transformer::Load(
          source.config, *source.weights,
          RuntimeOptionsOf(options.model, static_cast<int>(num_threads))));
  if (options.pin_threads) KVMIX_RETURN_IF_ERROR(transformer->threads().Pin());
  return transformer;
}

absl::StatusOr<std::unique_ptr<DeviceModel>> LoadBenchDevice(
    const BenchModelOptions& options, ThreadPool& threads) {
  KVMIX_ASSIGN_OR_RETURN(const Source source, OpenSource(options));
  return LoadCudaModel(source.config, *source.weights,
                       {.compute = RuntimeOptionsOf(options.model, 1).compute},
                       threads);
}

std::vector<int32_t> RandomTokens(int64_t count, uint64_t stream,
                                  int vocab_size) {
  CounterRandom random(kBenchSeed, stream);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens)
    token = static_cast<int32_t>(random.Below(vocab_size));
  return tokens;
}

}  // namespace kvmix
