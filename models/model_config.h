// The shape of a decoder-only transformer of the Llama kind, from a Hugging
// Face config.json or from GGUF metadata.
//
// Both readers refuse what the runtime would compute wrongly, such as another
// activation, biases it does not add, experts, or window patterns that differ
// between layers; the error gives the field, its value and the way out. A field
// this file does not mention is one that does not change the result.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "models/gguf.h"

namespace kvmix {

// How RoPE's angles are stretched to contexts longer than those trained on.
// Before scaling, pair i of a head's D / 2 pairs turns by f_i =
// rope_theta^(-2i/D) per position.
enum class RopeScalingType {
  kNone,
  kLinear,      // f_i / factor
  kLlama3,      // as Llama 3.1: low frequencies / factor, high ones kept
  kYarn,        // Peng et al., "YaRN", arXiv 2309.00071
  kPerChannel,  // f_i / frequency_divisors[i]
};

struct RopeScaling {
  RopeScalingType type = RopeScalingType::kNone;
  float factor = 1;               // kLinear, kLlama3, kYarn; at least 1
  int original_max_position = 0;  // kLlama3, kYarn; context trained on
  float low_freq_factor = 1;      // kLlama3
  float high_freq_factor = 4;     // kLlama3
  float beta_fast = 32;           // kYarn: turns over the trained context
  float beta_slow = 1;            // above which f_i is kept, below scaled
  bool truncate = true;           // kYarn: round the ramp's ends outwards
  float attention_factor = 1;     // kYarn: multiplies cos and sin; resolved
                                  // from mscale, mscale_all_dim or factor
  std::vector<float> frequency_divisors;  // kPerChannel, [head_dim / 2]

  bool operator==(const RopeScaling&) const = default;
};

struct ModelConfig {
  std::string family;  // "llama", "mistral", "qwen2" or "qwen3"
  int num_layers = 0;
  int hidden_size = 0;
  int num_heads = 0;     // query heads
  int num_kv_heads = 0;  // divides num_heads
  int head_dim = 0;      // even; num_heads * head_dim need not be hidden_size
  int intermediate_size = 0;
  int vocab_size = 0;
  float rms_norm_eps = 0;
  float rope_theta = 10000;
  RopeScaling rope_scaling;
  int max_position = 0;    // longest sequence, in tokens
  int sliding_window = 0;  // every layer attends this many last tokens; 0: all
  bool tie_embeddings = false;  // the output matrix is the embedding matrix
  bool qkv_bias = false;        // Qwen2
  bool qk_norm =
      false;        // Qwen3: RMSNorm of each head's query and key, before RoPE
  int bos_id = -1;  // -1: none
  std::vector<int> eos_ids;

  bool operator==(const ModelConfig&) const = default;
};

// Refuses sizes that are absurd, inconsistent or would overflow. What both
// readers return has passed it; a config built by hand should pass it too.
absl::Status Validate(const ModelConfig& config);

// `generation_config_json` may be empty; where it names end-of-sequence tokens,
// they replace those of config.json, as they do in Hugging Face's generate().
// Reads the fields of transformers 4 (rope_theta, rope_scaling) and 5
// (rope_parameters).
absl::StatusOr<ModelConfig> ParseHuggingFaceConfig(
    absl::string_view config_json, absl::string_view generation_config_json);

absl::StatusOr<ModelConfig> ParseGgufConfig(const GgufFile& file);

// Every tensor that a model of this shape reads, by its Hugging Face name.
struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
};
std::vector<ExpectedTensor> ExpectedTensors(const ModelConfig& config);

}  // namespace kvmix
