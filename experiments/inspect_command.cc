#include <iostream>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "experiments/command_line.h"
#include "experiments/commands.h"
#include "experiments/config_flags.h"
#include "experiments/paths.h"
#include "experiments/stages.h"
#include "experiments/table.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/budget.h"
#include "models/model_files.h"
#include "models/ops.h"

namespace kvmix {
namespace {

constexpr double kMiB = 1 << 20;

std::string ModelText(const ModelConfig& config, const std::string& path) {
  return absl::StrFormat(
      "%s\nfamily %s, %d layers, hidden size %d, %d heads, %d KV heads, "
      "head_dim "
      "%d,\nintermediate size %d, vocabulary %d, context %d, RoPE theta "
      "%g%s%s\n",
      path, config.family, config.num_layers, config.hidden_size,
      config.num_heads, config.num_kv_heads, config.head_dim,
      config.intermediate_size, config.vocab_size, config.max_position,
      config.rope_theta,
      config.sliding_window > 0
          ? absl::StrCat(", sliding window ", config.sliding_window)
          : "",
      config.tie_embeddings ? ", tied embeddings" : "");
}

// Number of weights by stored type, and each tensor if `all`.
absl::StatusOr<std::string> TensorText(const WeightSource& weights, bool all) {
  std::map<std::string, int64_t> count_of_type;
  int64_t total = 0;
  std::string text;
  for (const TensorInfo& tensor : weights.tensors()) {
    KVMIX_ASSIGN_OR_RETURN(const int64_t count, CountElements(tensor.shape));
    const std::string type(LayoutOf(tensor.type).name);
    count_of_type[type] += count;
    total += count;
    if (all) {
      absl::StrAppendFormat(&text, "  %-50s %-6s %s\n", tensor.name, type,
                            ShapeText(tensor.shape));
    }
  }
  std::string summary = absl::StrFormat(
      "%d tensors, %.1f M weights:", weights.tensors().size(), total / 1e6);
  for (const auto& [type, count] : count_of_type)
    absl::StrAppendFormat(&summary, " %.1f M in %s", count / 1e6, type);
  return absl::StrCat(summary, "\n", text);
}

// A profile in which all layers matter alike: enough for the bits of a plan,
// which do not depend on the layers that are chosen.
ImportanceProfile FlatProfile(const CacheShape& shape) {
  ImportanceProfile profile;
  profile.set_estimator("uniform");
  profile.set_unit(ImportanceProfile::NATS);
  for (int i = 0; i < shape.num_layers; ++i) {
    LayerImportance& layer = *profile.add_layer();
    layer.set_key(1);
    layer.set_value(1);
    for (int head = 0; head < shape.num_kv_heads; ++head) {
      layer.add_key_head(1);
      layer.add_value_head(1);
    }
  }
  return profile;
}

absl::StatusOr<Table> SavingsTable(const ExperimentConfig& config,
                                   const ModelConfig& model) {
  const CacheShape shape = {.num_layers = model.num_layers,
                            .num_kv_heads = model.num_kv_heads,
                            .head_dim = model.head_dim,
                            .key_rotation = MakeKeyRotation(model)};
  const double elements =
      1.0 * model.num_layers * model.num_kv_heads * model.head_dim;
  Table table;
  table.header = {"method",         "K bits",         "V bits",
                  "bytes/token",    "MiB at context", "compression",
                  "tokens in 1 GiB"};
  for (const Method& method : config.method()) {
    KVMIX_ASSIGN_OR_RETURN(const RunnableMethod runnable,
                           Allocate(method, FlatProfile(shape), shape,
                                    config.evaluation(), config.seed()));
    KVMIX_ASSIGN_OR_RETURN(const PlanBits bits,
                           BitsOfPlan(runnable.plan, model.head_dim));
    const double bytes =
        elements * (bits.key.effective + bits.value.effective) / 8;
    table.rows.push_back(
        {method.name(),
         absl::StrFormat("%.2f (%.2f)", bits.key.effective, bits.key.nominal),
         absl::StrFormat("%.2f (%.2f)", bits.value.effective,
                         bits.value.nominal),
         absl::StrFormat("%.0f", bytes),
         absl::StrFormat("%.1f", bytes * model.max_position / kMiB),
         absl::StrFormat("%.2fx", bits.compression()),
         absl::StrFormat("%.0f", 1024 * kMiB / bytes)});
  }
  return table;
}

}  // namespace

absl::Status InspectCommand(absl::Span<const std::string> args,
                            const std::atomic<bool>&) {
  CommandLine command_line(
      "kvmix inspect --model=PATH [flags]",
      "Prints a model's shape and tensors, what its KV cache takes, and what "
      "the methods of a\nconfig would save. The model is not loaded.");
  ConfigFlags flags;
  bool tensors = false;
  flags.AddTo(command_line);
  command_line.Flag("tensors", &tensors, "list every tensor");
  KVMIX_RETURN_IF_ERROR(command_line.ParseFlags(args));
  KVMIX_ASSIGN_OR_RETURN(const ExperimentConfig config, flags.Load());
  KVMIX_ASSIGN_OR_RETURN(const std::string path,
                         ResolveModelPath(config.model().path()));
  KVMIX_ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(path));
  KVMIX_ASSIGN_OR_RETURN(const std::string tensor_text,
                         TensorText(*files.weights, tensors));
  KVMIX_ASSIGN_OR_RETURN(const Table savings,
                         SavingsTable(config, files.config));
  std::cout << ModelText(files.config, path) << tensor_text << "\n"
            << savings.Aligned()
            << "\nBits: stored, scales and zero points included (nominal). "
               "Packed blocks only: the tokens\nthat a recency policy keeps in "
               "full precision come on top (kvmix run measures them).\n";
  return absl::OkStatus();
}

}  // namespace kvmix
