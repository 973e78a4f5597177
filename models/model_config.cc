#include "models/model_config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"
#include "models/quote.h"

namespace kvmix {
namespace {

using Json = nlohmann::json;

constexpr absl::string_view kFamilies[] = {"llama", "mistral", "qwen2",
                                           "qwen3"};
constexpr size_t kMaxJsonBytes = size_t{1} << 20;

bool IsFamily(absl::string_view name) {
  return std::find(std::begin(kFamilies), std::end(kFamilies), name) !=
         std::end(kFamilies);
}

// The way out of every "not supported": what is.
std::string SupportedFamilies() {
  return absl::StrCat("KVmix runs ", absl::StrJoin(kFamilies, ", "));
}

absl::StatusOr<int> FitInt(int64_t value, absl::string_view field) {
  if (value < std::numeric_limits<int>::min() ||
      value > std::numeric_limits<int>::max())
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is ", value, " but must fit 32 bits"));
  return static_cast<int>(value);
}

// YaRN's factor on attention (arXiv 2309.00071, section 3.4), as m = 1.
double YarnMscale(double factor, double m) {
  return factor <= 1 ? 1 : 0.1 * m * std::log(factor) + 1;
}

// Divides hidden_size among the heads, where `origin` gives no head_dim.
absl::StatusOr<int> DefaultHeadDim(const ModelConfig& config,
                                   absl::string_view origin) {
  KVMIX_RETURN_IF_ERROR(
      AddContext(ValidateIsPositive(config.num_heads, "head count"), origin));
  KVMIX_RETURN_IF_ERROR(
      AddContext(ValidateDivides(config.num_heads, config.hidden_size,
                                 "head count", "hidden size"),
                 origin));
  return config.hidden_size / config.num_heads;
}

// ---- Hugging Face ----

// Typed reading of one JSON object. A null counts as absent, as in
// transformers.
class JsonFields {
 public:
  JsonFields(const Json& object, std::string path)
      : object_(object), path_(std::move(path)) {}

  std::string PathOf(absl::string_view key) const {
    return absl::StrCat(path_, key);
  }

  // Null where the key is absent.
  const Json* Find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  // Whether the key is there at all, even as null.
  bool Contains(const char* key) const { return object_.contains(key); }

  absl::StatusOr<int> Int(const char* key) const {
    const Json* value = Find(key);
    if (value == nullptr)
      return absl::InvalidArgumentError(
          absl::StrCat(PathOf(key), " is missing"));
    return ToInt(*value, PathOf(key));
  }
  absl::StatusOr<int> IntOr(const char* key, int fallback) const {
    return Find(key) == nullptr ? absl::StatusOr<int>(fallback) : Int(key);
  }
  absl::StatusOr<float> FloatOr(const char* key, float fallback) const {
    const Json* value = Find(key);
    if (value == nullptr) return fallback;
    if (!value->is_number()) return WrongType(*value, PathOf(key), "a number");
    return value->get<float>();
  }
  absl::StatusOr<bool> BoolOr(const char* key, bool fallback) const {
    const Json* value = Find(key);
    if (value == nullptr) return fallback;
    if (!value->is_boolean())
      return WrongType(*value, PathOf(key), "true or false");
    return value->get<bool>();
  }
  absl::StatusOr<std::string> StringOr(const char* key,
                                       const char* fallback) const {
    const Json* value = Find(key);
    if (value == nullptr) return std::string(fallback);
    if (!value->is_string()) return WrongType(*value, PathOf(key), "a string");
    return value->get<std::string>();
  }
  // One integer or a list of them.
  absl::StatusOr<std::vector<int>> Ints(const char* key) const {
    const Json* value = Find(key);
    std::vector<int> ints;
    if (value == nullptr) return ints;
    if (!value->is_array()) {
      KVMIX_ASSIGN_OR_RETURN(const int one, ToInt(*value, PathOf(key)));
      ints.push_back(one);
      return ints;
    }
    for (const Json& element : *value) {
      KVMIX_ASSIGN_OR_RETURN(const int one, ToInt(element, PathOf(key)));
      ints.push_back(one);
    }
    return ints;
  }

  // An error if the field is there and is not `only`.
  absl::Status RequireBool(const char* key, bool only,
                           absl::string_view why) const {
    KVMIX_ASSIGN_OR_RETURN(const bool value, BoolOr(key, only));
    if (value == only) return absl::OkStatus();
    return Refuse(key, value ? "true" : "false", why);
  }
  absl::Status Refuse(const char* key, absl::string_view value,
                      absl::string_view why) const {
    return absl::UnimplementedError(
        absl::StrCat(PathOf(key), " is ", value, "; ", why));
  }

 private:
  static absl::Status WrongType(const Json& value, const std::string& path,
                                absl::string_view wanted) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, " is of type ", value.type_name(), " but must be ", wanted));
  }
  static absl::StatusOr<int> ToInt(const Json& value, const std::string& path) {
    if (!value.is_number_integer()) return WrongType(value, path, "an integer");
    if (value.is_number_unsigned() &&
        value.get<uint64_t>() > std::numeric_limits<int64_t>::max())
      return absl::InvalidArgumentError(absl::StrCat(
          path, " is ", value.get<uint64_t>(), " but must fit 32 bits"));
    return FitInt(value.get<int64_t>(), path);
  }

  const Json& object_;
  std::string path_;
};

absl::StatusOr<Json> ParseObject(absl::string_view text,
                                 absl::string_view name) {
  if (text.size() > kMaxJsonBytes)
    return absl::InvalidArgumentError(absl::StrCat(name, " has ", text.size(),
                                                   " bytes but at most ",
                                                   kMaxJsonBytes, " are read"));
  Json json = Json::parse(text.begin(), text.end(), /*cb=*/nullptr,
                          /*allow_exceptions=*/false);
  if (json.is_object()) return json;
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is not a JSON object; fetch it again"));
}

// What the runtime would silently compute otherwise than the model means.
absl::Status RefuseUnsupported(const JsonFields& json) {
  KVMIX_ASSIGN_OR_RETURN(const std::string family,
                         json.StringOr("model_type", ""));
  if (!IsFamily(family))
    return json.Refuse("model_type", Quote(family), SupportedFamilies());
  if (const Json* list = json.Find("architectures")) {
    static constexpr absl::string_view kClasses[] = {
        "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM",
        "Qwen3ForCausalLM"};
    for (const Json& element : *list) {
      const auto* name = element.get_ptr<const std::string*>();
      if (name == nullptr || std::find(std::begin(kClasses), std::end(kClasses),
                                       *name) == std::end(kClasses))
        return json.Refuse(
            "architectures", Quote(name == nullptr ? "?" : *name),
            absl::StrCat("KVmix runs ", absl::StrJoin(kClasses, ", ")));
    }
  }
  if (json.Find("auto_map") != nullptr)
    return json.Refuse("auto_map", "set",
                       "the model brings its own code, which KVmix does not "
                       "run; remove the field if the model is a plain one");
  for (const char* key : {"quantization_config", "compression_config"})
    if (json.Find(key) != nullptr)
      return json.Refuse(key, "set",
                         "quantized safetensors are not read; fetch the "
                         "unquantized model or a GGUF file");
  for (const char* key :
       {"num_local_experts", "num_experts", "n_routed_experts"})
    if (json.Find(key) != nullptr)
      return json.Refuse(key, "set",
                         "mixtures of experts are not supported; use a dense "
                         "model");
  KVMIX_ASSIGN_OR_RETURN(const std::string activation,
                         json.StringOr("hidden_act", "silu"));
  if (activation != "silu" && activation != "swish")
    return json.Refuse("hidden_act", Quote(activation),
                       "KVmix computes silu; use a model with it");
  for (const char* key : {"attention_bias", "mlp_bias"})
    KVMIX_RETURN_IF_ERROR(json.RequireBool(
        key, false,
        "of the families that KVmix runs only qwen2 has biases, in q, k and v; "
        "use a model without"));
  KVMIX_RETURN_IF_ERROR(json.RequireBool(
      "is_causal", true, "KVmix runs causal models; use a generative one"));
  KVMIX_RETURN_IF_ERROR(
      json.RequireBool("use_bidirectional_attention", false,
                       "KVmix runs causal models; use a generative one"));
  return absl::OkStatus();
}

absl::Status RefusePartialRotary(const JsonFields& json) {
  KVMIX_ASSIGN_OR_RETURN(const float fraction,
                         json.FloatOr("partial_rotary_factor", 1));
  if (fraction == 1) return absl::OkStatus();
  return json.Refuse("partial_rotary_factor", absl::StrCat(fraction),
                     "KVmix rotates whole heads (1); use a model that does");
}

absl::StatusOr<RopeScaling> ParseYarn(const JsonFields& rope,
                                      RopeScaling scaling) {
  KVMIX_ASSIGN_OR_RETURN(scaling.beta_fast, rope.FloatOr("beta_fast", 32));
  KVMIX_ASSIGN_OR_RETURN(scaling.beta_slow, rope.FloatOr("beta_slow", 1));
  KVMIX_ASSIGN_OR_RETURN(scaling.truncate, rope.BoolOr("truncate", true));
  KVMIX_ASSIGN_OR_RETURN(const float mscale, rope.FloatOr("mscale", 0));
  KVMIX_ASSIGN_OR_RETURN(const float mscale_all,
                         rope.FloatOr("mscale_all_dim", 0));
  const double derived = mscale != 0 && mscale_all != 0
                             ? YarnMscale(scaling.factor, mscale) /
                                   YarnMscale(scaling.factor, mscale_all)
                             : YarnMscale(scaling.factor, 1);
  KVMIX_ASSIGN_OR_RETURN(
      scaling.attention_factor,
      rope.FloatOr("attention_factor", static_cast<float>(derived)));
  return scaling;
}

absl::Status RefuseUnknownRopeKeys(const Json& object, const JsonFields& rope) {
  static constexpr absl::string_view kKnown[] = {
      "rope_type",
      "type",
      "rope_theta",
      "factor",
      "low_freq_factor",
      "high_freq_factor",
      "original_max_position_embeddings",
      "beta_fast",
      "beta_slow",
      "truncate",
      "mscale",
      "mscale_all_dim",
      "attention_factor",
      "partial_rotary_factor",
      "finetuned"};
  for (const auto& [key, value] : object.items())
    if (std::find(std::begin(kKnown), std::end(kKnown), key) ==
        std::end(kKnown))
      return absl::UnimplementedError(absl::StrCat(
          rope.PathOf(absl::CHexEscape(key.substr(0, 80))),
          " is not known; KVmix computes RoPE of type default, linear, llama3 "
          "and yarn, the same in every layer"));
  return absl::OkStatus();
}

// `rope` is rope_parameters (which has rope_theta inside) or rope_scaling.
absl::StatusOr<RopeScaling> ParseRopeScaling(const JsonFields& config,
                                             const JsonFields& rope,
                                             int max_position) {
  RopeScaling scaling;
  KVMIX_ASSIGN_OR_RETURN(const std::string old_name,
                         rope.StringOr("type", "default"));
  KVMIX_ASSIGN_OR_RETURN(const std::string type,
                         rope.StringOr("rope_type", old_name.c_str()));
  if (type == "default") return scaling;
  if (type == "linear") {
    scaling.type = RopeScalingType::kLinear;
  } else if (type == "llama3") {
    scaling.type = RopeScalingType::kLlama3;
  } else if (type == "yarn") {
    scaling.type = RopeScalingType::kYarn;
  } else {
    return rope.Refuse("rope_type", Quote(type),
                       "KVmix computes default, linear, llama3 and yarn; use a "
                       "model with one of them");
  }
  if (type != "linear") {
    constexpr char kKey[] = "original_max_position_embeddings";
    KVMIX_ASSIGN_OR_RETURN(const int trained, rope.IntOr(kKey, max_position));
    KVMIX_ASSIGN_OR_RETURN(scaling.original_max_position,
                           config.IntOr(kKey, trained));
    KVMIX_RETURN_IF_ERROR(
        ValidateIsPositive(scaling.original_max_position, rope.PathOf(kKey)));
  }
  if (type == "yarn" && rope.Find("factor") == nullptr) {
    scaling.factor = static_cast<float>(max_position) /
                     static_cast<float>(scaling.original_max_position);
  } else {
    KVMIX_ASSIGN_OR_RETURN(
        scaling.factor,
        rope.FloatOr("factor", std::numeric_limits<float>::quiet_NaN()));
    if (std::isnan(scaling.factor))
      return absl::InvalidArgumentError(
          absl::StrCat(rope.PathOf("factor"), " is missing"));
  }
  if (type == "llama3") {
    KVMIX_ASSIGN_OR_RETURN(scaling.low_freq_factor,
                           rope.FloatOr("low_freq_factor", 1));
    KVMIX_ASSIGN_OR_RETURN(scaling.high_freq_factor,
                           rope.FloatOr("high_freq_factor", 4));
  }
  return type == "yarn" ? ParseYarn(rope, scaling) : scaling;
}

// rope_theta and the scaling, from the fields of transformers 4 and 5.
absl::Status ParseRope(const JsonFields& json, ModelConfig& config) {
  KVMIX_RETURN_IF_ERROR(RefusePartialRotary(json));
  KVMIX_ASSIGN_OR_RETURN(config.rope_theta, json.FloatOr("rope_theta", 10000));
  bool seen = false;
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const Json* object = json.Find(key);
    if (object == nullptr) continue;
    if (!object->is_object())
      return absl::InvalidArgumentError(
          absl::StrCat(json.PathOf(key), " must be an object"));
    const JsonFields rope(*object, absl::StrCat(json.PathOf(key), "."));
    KVMIX_RETURN_IF_ERROR(RefuseUnknownRopeKeys(*object, rope));
    KVMIX_RETURN_IF_ERROR(RefusePartialRotary(rope));
    KVMIX_ASSIGN_OR_RETURN(config.rope_theta,
                           rope.FloatOr("rope_theta", config.rope_theta));
    KVMIX_ASSIGN_OR_RETURN(RopeScaling scaling,
                           ParseRopeScaling(json, rope, config.max_position));
    if (seen && scaling != config.rope_scaling)
      return absl::InvalidArgumentError(absl::StrCat(
          json.PathOf("rope_parameters"), " and ", json.PathOf("rope_scaling"),
          " say different things; remove one"));
    config.rope_scaling = std::move(scaling);
    seen = true;
  }
  return absl::OkStatus();
}

// Layers from `first` on see the window; one window for all layers, or none.
absl::StatusOr<int> UniformWindow(const JsonFields& json, int window, int first,
                                  int num_layers) {
  const auto mixed = [&json](const char* key, absl::string_view value) {
    return json.Refuse(key, value,
                       "KVmix runs one attention window in all layers; use a "
                       "model whose layers are alike");
  };
  if (const Json* types = json.Find("layer_types")) {
    if (!types->is_array() || types->empty())
      return absl::InvalidArgumentError(
          absl::StrCat(json.PathOf("layer_types"), " must be a list"));
    const Json& kind = types->front();
    if (kind != "full_attention" && kind != "sliding_attention")
      return mixed("layer_types", "of an unknown kind");
    if (std::any_of(types->begin(), types->end(),
                    [&kind](const Json& other) { return other != kind; }))
      return mixed("layer_types", "of several kinds");
    return kind == "full_attention" ? 0 : window;
  }
  if (window == 0 || first >= num_layers) return 0;
  if (first > 0) return mixed("max_window_layers", absl::StrCat(first));
  return window;
}

absl::StatusOr<int> ParseSlidingWindow(const JsonFields& json,
                                       const ModelConfig& config) {
  if (config.family == "llama") return 0;
  if (config.family == "mistral") {
    // transformers takes an absent field for 4096, a null one for none.
    if (!json.Contains("sliding_window"))
      return UniformWindow(json, 4096, 0, config.num_layers);
    KVMIX_ASSIGN_OR_RETURN(const int window, json.IntOr("sliding_window", 0));
    return UniformWindow(json, window, 0, config.num_layers);
  }
  KVMIX_ASSIGN_OR_RETURN(const bool use,
                         json.BoolOr("use_sliding_window", false));
  KVMIX_ASSIGN_OR_RETURN(const int window, json.IntOr("sliding_window", 0));
  KVMIX_ASSIGN_OR_RETURN(const int first, json.IntOr("max_window_layers", 28));
  return UniformWindow(json, use ? window : 0, first, config.num_layers);
}

absl::Status ParseSizes(const JsonFields& json, ModelConfig& config) {
  KVMIX_ASSIGN_OR_RETURN(config.num_layers, json.Int("num_hidden_layers"));
  KVMIX_ASSIGN_OR_RETURN(config.hidden_size, json.Int("hidden_size"));
  KVMIX_ASSIGN_OR_RETURN(config.num_heads, json.Int("num_attention_heads"));
  KVMIX_ASSIGN_OR_RETURN(config.num_kv_heads,
                         json.IntOr("num_key_value_heads", config.num_heads));
  KVMIX_ASSIGN_OR_RETURN(config.intermediate_size,
                         json.Int("intermediate_size"));
  KVMIX_ASSIGN_OR_RETURN(config.vocab_size, json.Int("vocab_size"));
  KVMIX_ASSIGN_OR_RETURN(config.max_position,
                         json.Int("max_position_embeddings"));
  KVMIX_ASSIGN_OR_RETURN(config.rms_norm_eps,
                         json.FloatOr("rms_norm_eps", 1e-6f));
  KVMIX_ASSIGN_OR_RETURN(config.tie_embeddings,
                         json.BoolOr("tie_word_embeddings", false));
  // transformers' default for qwen3 is 128, whatever hidden_size is.
  if (json.Find("head_dim") != nullptr || config.family == "qwen3") {
    KVMIX_ASSIGN_OR_RETURN(config.head_dim, json.IntOr("head_dim", 128));
  } else {
    KVMIX_ASSIGN_OR_RETURN(config.head_dim,
                           DefaultHeadDim(config, "config.json"));
  }
  return absl::OkStatus();
}

// ---- GGUF ----

// Keys "<architecture>.<suffix>" that are read here or change nothing.
constexpr absl::string_view kGgufSuffixes[] = {
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "expert_count",
    "expert_used_count",
    "tensor_data_layout",
    "use_parallel_residual",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.causal",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
};

// Reads "<architecture>.<suffix>".
class GgufFields {
 public:
  GgufFields(const GgufMetadata& metadata, absl::string_view architecture)
      : metadata_(metadata), prefix_(absl::StrCat(architecture, ".")) {}

  bool Has(absl::string_view suffix) const {
    return metadata_.Has(KeyOf(suffix));
  }
  std::string KeyOf(absl::string_view suffix) const {
    return absl::StrCat(prefix_, suffix);
  }
  absl::StatusOr<int> Int(absl::string_view suffix) const {
    const std::string key = KeyOf(suffix);
    KVMIX_ASSIGN_OR_RETURN(const int64_t value, metadata_.Get<int64_t>(key));
    return FitInt(value, key);
  }
  absl::StatusOr<int> IntOr(absl::string_view suffix, int fallback) const {
    return Has(suffix) ? Int(suffix) : absl::StatusOr<int>(fallback);
  }
  absl::StatusOr<float> Float(absl::string_view suffix) const {
    KVMIX_ASSIGN_OR_RETURN(const double value,
                           metadata_.Get<double>(KeyOf(suffix)));
    return static_cast<float>(value);
  }
  absl::StatusOr<float> FloatOr(absl::string_view suffix,
                                float fallback) const {
    return Has(suffix) ? Float(suffix) : absl::StatusOr<float>(fallback);
  }
  // An error if the key is there and is not `only`.
  template <typename T>
  absl::Status Require(absl::string_view suffix, T only,
                       absl::string_view why) const {
    KVMIX_ASSIGN_OR_RETURN(const T value,
                           metadata_.GetOr<T>(KeyOf(suffix), only));
    if (value == only) return absl::OkStatus();
    return absl::UnimplementedError(
        absl::StrCat("GGUF metadata \"", KeyOf(suffix), "\" is ", value,
                     " but must be ", only, "; ", why));
  }
  absl::Status RefuseUnknownKeys() const {
    for (const absl::string_view key : metadata_.Keys()) {
      if (!absl::StartsWith(key, prefix_)) continue;
      if (std::find(std::begin(kGgufSuffixes), std::end(kGgufSuffixes),
                    key.substr(prefix_.size())) == std::end(kGgufSuffixes))
        return absl::UnimplementedError(
            absl::StrCat("GGUF metadata ", Quote(key),
                         " is not known, so this model may "
                         "compute what KVmix does not; ",
                         SupportedFamilies()));
    }
    return absl::OkStatus();
  }

 private:
  const GgufMetadata& metadata_;
  std::string prefix_;
};

absl::Status RefuseUnsupported(const GgufMetadata& metadata,
                               const GgufFields& fields) {
  KVMIX_ASSIGN_OR_RETURN(
      const absl::string_view kind,
      metadata.GetOr<absl::string_view>("general.type", "model"));
  if (kind != "model")
    return absl::UnimplementedError(absl::StrCat(
        "GGUF metadata \"general.type\" is ", Quote(kind),
        " but must be \"model\"; give the file of the base model"));
  KVMIX_ASSIGN_OR_RETURN(const int64_t parts,
                         metadata.GetOr<int64_t>("split.count", 1));
  if (parts > 1)
    return absl::UnimplementedError(absl::StrCat(
        "the model is split over ", parts,
        " GGUF files; merge them first (llama-gguf-split --merge)"));
  KVMIX_RETURN_IF_ERROR(fields.RefuseUnknownKeys());
  KVMIX_RETURN_IF_ERROR(fields.Require<int64_t>(
      "expert_count", 0,
      "mixtures of experts are not supported; use a dense model"));
  KVMIX_RETURN_IF_ERROR(fields.Require<bool>(
      "use_parallel_residual", false, "use a model with sequential blocks"));
  return fields.Require<bool>("attention.causal", true,
                              "KVmix runs causal models; use a generative one");
}

absl::Status ParseSizes(const GgufFields& fields, ModelConfig& config) {
  KVMIX_ASSIGN_OR_RETURN(config.num_layers, fields.Int("block_count"));
  KVMIX_ASSIGN_OR_RETURN(config.hidden_size, fields.Int("embedding_length"));
  KVMIX_ASSIGN_OR_RETURN(config.num_heads, fields.Int("attention.head_count"));
  KVMIX_ASSIGN_OR_RETURN(
      config.num_kv_heads,
      fields.IntOr("attention.head_count_kv", config.num_heads));
  KVMIX_ASSIGN_OR_RETURN(config.intermediate_size,
                         fields.Int("feed_forward_length"));
  KVMIX_ASSIGN_OR_RETURN(config.max_position, fields.Int("context_length"));
  KVMIX_ASSIGN_OR_RETURN(config.rms_norm_eps,
                         fields.Float("attention.layer_norm_rms_epsilon"));
  KVMIX_ASSIGN_OR_RETURN(config.rope_theta,
                         fields.FloatOr("rope.freq_base", 10000));
  KVMIX_ASSIGN_OR_RETURN(config.sliding_window,
                         fields.IntOr("attention.sliding_window", 0));
  if (fields.Has("attention.key_length")) {
    KVMIX_ASSIGN_OR_RETURN(config.head_dim, fields.Int("attention.key_length"));
  } else {
    KVMIX_ASSIGN_OR_RETURN(config.head_dim,
                           DefaultHeadDim(config, "GGUF metadata"));
  }
  KVMIX_RETURN_IF_ERROR(fields.Require<int64_t>(
      "attention.value_length", config.head_dim,
      "KVmix runs models whose keys and values have the same length"));
  return fields.Require<int64_t>(
      "rope.dimension_count", config.head_dim,
      "KVmix rotates whole heads; use a model that does");
}

absl::StatusOr<RopeScaling> ParseRopeScaling(const GgufMetadata& metadata,
                                             const GgufFields& fields) {
  RopeScaling scaling;
  KVMIX_ASSIGN_OR_RETURN(const float old_factor,
                         fields.FloatOr("rope.scale_linear", 1));
  KVMIX_ASSIGN_OR_RETURN(scaling.factor,
                         fields.FloatOr("rope.scaling.factor", old_factor));
  KVMIX_ASSIGN_OR_RETURN(
      const absl::string_view type,
      metadata.GetOr<absl::string_view>(
          fields.KeyOf("rope.scaling.type"),
          fields.Has("rope.scale_linear") ? "linear" : "none"));
  if (type == "none") return RopeScaling();
  if (type == "linear") {
    scaling.type = RopeScalingType::kLinear;
    return scaling;
  }
  if (type != "yarn")
    return absl::UnimplementedError(absl::StrCat(
        "GGUF metadata \"", fields.KeyOf("rope.scaling.type"), "\" is ",
        Quote(type), " but must be none, linear or yarn"));
  scaling.type = RopeScalingType::kYarn;
  KVMIX_RETURN_IF_ERROR(fields.Require<double>(
      "rope.scaling.yarn_ext_factor", 1, "other mixes are not computed"));
  KVMIX_ASSIGN_OR_RETURN(scaling.original_max_position,
                         fields.Int("rope.scaling.original_context_length"));
  KVMIX_ASSIGN_OR_RETURN(scaling.beta_fast,
                         fields.FloatOr("rope.scaling.yarn_beta_fast", 32));
  KVMIX_ASSIGN_OR_RETURN(scaling.beta_slow,
                         fields.FloatOr("rope.scaling.yarn_beta_slow", 1));
  KVMIX_ASSIGN_OR_RETURN(const float plain,
                         fields.FloatOr("rope.scaling.attn_factor", 1));
  KVMIX_ASSIGN_OR_RETURN(
      const float correction,
      fields.FloatOr("rope.scaling.yarn_attn_factor", plain));
  scaling.attention_factor =
      static_cast<float>(correction * YarnMscale(scaling.factor, 1));
  return scaling;
}

// The tensor rope_freqs.weight, where Llama 3's scaling lies ready-made.
absl::Status ReadRopeDivisors(const GgufFile& file, ModelConfig& config) {
  constexpr char kName[] = "rope_freqs.weight";
  if (!file.Find(kName).ok()) return absl::OkStatus();
  RopeScaling& scaling = config.rope_scaling;
  if (scaling.type != RopeScalingType::kNone)
    return absl::UnimplementedError(absl::StrCat(
        "the file has both tensor \"", kName,
        "\" and rope.scaling metadata; KVmix applies one of them"));
  scaling.type = RopeScalingType::kPerChannel;
  scaling.frequency_divisors.resize(config.head_dim / 2);
  return file.ReadFloat(kName, {config.head_dim / 2},
                        scaling.frequency_divisors.data());
}

absl::Status ParseVocabulary(const GgufFile& file, ModelConfig& config) {
  const GgufMetadata& metadata = *file.metadata();
  KVMIX_ASSIGN_OR_RETURN(const TensorInfo* const embedding,
                         file.Find("model.embed_tokens.weight"));
  KVMIX_ASSIGN_OR_RETURN(config.vocab_size,
                         FitInt(embedding->shape[0], "vocabulary size"));
  config.tie_embeddings = !file.Find("lm_head.weight").ok();
  KVMIX_ASSIGN_OR_RETURN(
      const int64_t bos,
      metadata.GetOr<int64_t>("tokenizer.ggml.bos_token_id", -1));
  KVMIX_ASSIGN_OR_RETURN(config.bos_id,
                         FitInt(bos, "tokenizer.ggml.bos_token_id"));
  for (const absl::string_view kind : {"eos", "eot", "eom"}) {
    const std::string key = absl::StrCat("tokenizer.ggml.", kind, "_token_id");
    if (!metadata.Has(key)) continue;
    KVMIX_ASSIGN_OR_RETURN(const int64_t value, metadata.Get<int64_t>(key));
    KVMIX_ASSIGN_OR_RETURN(const int id, FitInt(value, key));
    if (std::find(config.eos_ids.begin(), config.eos_ids.end(), id) ==
        config.eos_ids.end())
      config.eos_ids.push_back(id);
  }
  return absl::OkStatus();
}

void SetFamily(absl::string_view family, ModelConfig& config) {
  config.family = std::string(family);
  config.qkv_bias = family == "qwen2";
  config.qk_norm = family == "qwen3";
}

absl::Status ValidateRopeScaling(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  if (scaling.type == RopeScalingType::kNone) return absl::OkStatus();
  if (scaling.type == RopeScalingType::kPerChannel) {
    if (static_cast<int>(scaling.frequency_divisors.size()) !=
        config.head_dim / 2)
      return absl::InvalidArgumentError(absl::StrCat(
          "rope_scaling.frequency_divisors has ",
          scaling.frequency_divisors.size(), " entries but must have ",
          config.head_dim / 2, ", half of head_dim"));
    for (const float divisor : scaling.frequency_divisors)
      KVMIX_RETURN_IF_ERROR(
          ValidateIsPositive(divisor, "rope_scaling.frequency_divisors"));
    return absl::OkStatus();
  }
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(scaling.factor, 1.0f, 1e6f, "rope_scaling.factor"));
  if (scaling.type == RopeScalingType::kLinear) return absl::OkStatus();
  KVMIX_RETURN_IF_ERROR(ValidateIsPositive(
      scaling.original_max_position, "rope_scaling.original_max_position"));
  if (scaling.type == RopeScalingType::kLlama3) {
    KVMIX_RETURN_IF_ERROR(ValidateIsPositive(scaling.low_freq_factor,
                                             "rope_scaling.low_freq_factor"));
    if (scaling.high_freq_factor > scaling.low_freq_factor &&
        scaling.high_freq_factor <= 1e6f)
      return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("rope_scaling.high_freq_factor is ",
                     scaling.high_freq_factor, " but must be in (",
                     scaling.low_freq_factor, ", 1e6], above low_freq_factor"));
  }
  KVMIX_RETURN_IF_ERROR(
      ValidateIsPositive(scaling.beta_slow, "rope_scaling.beta_slow"));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(scaling.beta_fast, scaling.beta_slow, 1e6f,
                        "rope_scaling.beta_fast (at least beta_slow)"));
  return ValidateIsInRange(scaling.attention_factor, 1e-3f, 1e3f,
                           "rope_scaling.attention_factor");
}

absl::Status ValidateTokenIds(const ModelConfig& config) {
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(config.bos_id, -1, config.vocab_size - 1, "bos_id"));
  if (config.eos_ids.size() > 64)
    return absl::InvalidArgumentError(absl::StrCat(
        "eos_ids has ", config.eos_ids.size(), " entries but at most 64"));
  for (const int id : config.eos_ids)
    KVMIX_RETURN_IF_ERROR(
        ValidateIsInRange(id, 0, config.vocab_size - 1, "eos_ids"));
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const ModelConfig& config) {
  if (!IsFamily(config.family))
    return absl::InvalidArgumentError(absl::StrCat(
        "family is ", Quote(config.family), "; ", SupportedFamilies()));
  // Far above every model there is, and low enough that the product of any two
  // fits 63 bits, and of those that make a matrix, its bytes.
  const struct {
    absl::string_view field;
    int value, low, high;
  } sizes[] = {
      {"num_layers", config.num_layers, 1, 1 << 10},
      {"hidden_size", config.hidden_size, 1, 1 << 18},
      {"num_heads", config.num_heads, 1, 1 << 12},
      {"num_kv_heads", config.num_kv_heads, 1, 1 << 12},
      {"head_dim", config.head_dim, 2, 1 << 10},
      {"intermediate_size", config.intermediate_size, 1, 1 << 20},
      {"vocab_size", config.vocab_size, 1, 1 << 24},
      {"max_position", config.max_position, 1, 1 << 28},
      {"sliding_window", config.sliding_window, 0, 1 << 28},
  };
  for (const auto& size : sizes)
    KVMIX_RETURN_IF_ERROR(
        ValidateIsInRange(size.value, size.low, size.high, size.field));
  KVMIX_RETURN_IF_ERROR(ValidateDivides(config.num_kv_heads, config.num_heads,
                                        "num_kv_heads", "num_heads"));
  if (config.head_dim % 2 != 0)
    return absl::InvalidArgumentError(
        absl::StrCat("head_dim is ", config.head_dim,
                     " but must be even: RoPE turns pairs"));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(config.rms_norm_eps, 1e-12f, 0.1f, "rms_norm_eps"));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(config.rope_theta, 2.0f, 1e12f, "rope_theta"));
  KVMIX_RETURN_IF_ERROR(ValidateRopeScaling(config));
  return ValidateTokenIds(config);
}

absl::StatusOr<ModelConfig> ParseHuggingFaceConfig(
    absl::string_view config_json, absl::string_view generation_config_json) {
  KVMIX_ASSIGN_OR_RETURN(const Json object,
                         ParseObject(config_json, "config.json"));
  const JsonFields json(object, "config.json: ");
  KVMIX_RETURN_IF_ERROR(RefuseUnsupported(json));

  ModelConfig config;
  KVMIX_ASSIGN_OR_RETURN(const std::string family,
                         json.StringOr("model_type", ""));
  SetFamily(family, config);
  KVMIX_RETURN_IF_ERROR(ParseSizes(json, config));
  KVMIX_RETURN_IF_ERROR(ParseRope(json, config));
  KVMIX_ASSIGN_OR_RETURN(config.sliding_window,
                         ParseSlidingWindow(json, config));
  KVMIX_ASSIGN_OR_RETURN(config.bos_id, json.IntOr("bos_token_id", -1));
  KVMIX_ASSIGN_OR_RETURN(config.eos_ids, json.Ints("eos_token_id"));
  if (!generation_config_json.empty()) {
    KVMIX_ASSIGN_OR_RETURN(
        const Json generation,
        ParseObject(generation_config_json, "generation_config.json"));
    const JsonFields fields(generation, "generation_config.json: ");
    KVMIX_ASSIGN_OR_RETURN(std::vector<int> ids, fields.Ints("eos_token_id"));
    if (!ids.empty()) config.eos_ids = std::move(ids);
  }
  KVMIX_RETURN_IF_ERROR(AddContext(Validate(config), "config.json"));
  return config;
}

absl::StatusOr<ModelConfig> ParseGgufConfig(const GgufFile& file) {
  const GgufMetadata& metadata = *file.metadata();
  KVMIX_ASSIGN_OR_RETURN(
      const absl::string_view architecture,
      metadata.Get<absl::string_view>("general.architecture"));
  if (!IsFamily(architecture) || architecture == "mistral")
    return absl::UnimplementedError(absl::StrCat(
        "GGUF metadata \"general.architecture\" is ", Quote(architecture),
        "; KVmix runs llama (also SmolLM2 and "
        "Mistral), qwen2 and qwen3"));
  const GgufFields fields(metadata, architecture);
  KVMIX_RETURN_IF_ERROR(RefuseUnsupported(metadata, fields));

  ModelConfig config;
  SetFamily(architecture, config);
  KVMIX_RETURN_IF_ERROR(ParseSizes(fields, config));
  KVMIX_ASSIGN_OR_RETURN(config.rope_scaling,
                         ParseRopeScaling(metadata, fields));
  KVMIX_RETURN_IF_ERROR(ParseVocabulary(file, config));
  KVMIX_RETURN_IF_ERROR(AddContext(Validate(config), "GGUF metadata"));
  KVMIX_RETURN_IF_ERROR(ReadRopeDivisors(file, config));
  KVMIX_RETURN_IF_ERROR(AddContext(Validate(config), "GGUF metadata"));
  return config;
}

std::vector<ExpectedTensor> ExpectedTensors(const ModelConfig& config) {
  const int64_t hidden = config.hidden_size;
  const int64_t inner = config.intermediate_size;
  const int64_t q = int64_t{config.num_heads} * config.head_dim;
  const int64_t kv = int64_t{config.num_kv_heads} * config.head_dim;
  std::vector<ExpectedTensor> expected = {
      {"model.embed_tokens.weight", {config.vocab_size, hidden}},
      {"model.norm.weight", {hidden}},
  };
  if (!config.tie_embeddings)
    expected.push_back({"lm_head.weight", {config.vocab_size, hidden}});
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const auto add = [&](absl::string_view part, std::vector<int64_t> shape) {
      expected.push_back(
          {absl::StrCat("model.layers.", layer, ".", part), std::move(shape)});
    };
    add("input_layernorm.weight", {hidden});
    add("self_attn.q_proj.weight", {q, hidden});
    add("self_attn.k_proj.weight", {kv, hidden});
    add("self_attn.v_proj.weight", {kv, hidden});
    add("self_attn.o_proj.weight", {hidden, q});
    if (config.qkv_bias) {
      add("self_attn.q_proj.bias", {q});
      add("self_attn.k_proj.bias", {kv});
      add("self_attn.v_proj.bias", {kv});
    }
    if (config.qk_norm) {
      add("self_attn.q_norm.weight", {config.head_dim});
      add("self_attn.k_norm.weight", {config.head_dim});
    }
    add("post_attention_layernorm.weight", {hidden});
    add("mlp.gate_proj.weight", {inner, hidden});
    add("mlp.up_proj.weight", {inner, hidden});
    add("mlp.down_proj.weight", {hidden, inner});
  }
  return expected;
}

}  // namespace kvmix
