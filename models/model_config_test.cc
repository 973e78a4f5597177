#include "models/model_config.h"

#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/base/status_matchers.h"
#include "models/gguf_test_writer.h"

namespace kvmix {
namespace {

using ::kvmix::testing::Bytes;
using ::kvmix::testing::ExactCopy;
using ::kvmix::testing::GgufTestWriter;
using ::kvmix::testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

// What Llama 3.2 1B's config.json says.
constexpr char kLlama[] = R"({
  "architectures": ["LlamaForCausalLM"], "attention_bias": false,
  "attention_dropout": 0.0, "bos_token_id": 128000,
  "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
  "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
  "intermediate_size": 8192, "max_position_embeddings": 131072,
  "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32,
  "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
  "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0,
    "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": true,
  "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 128256})";

// kLlama with some fields replaced; null in `changes` removes one.
absl::StatusOr<ModelConfig> Parse(absl::string_view changes,
                                  absl::string_view generation = "") {
  Json json = Json::parse(kLlama);
  json.merge_patch(Json::parse(changes.begin(), changes.end()));
  return ParseHuggingFaceConfig(json.dump(), generation);
}

TEST(HuggingFaceConfigTest, Llama32) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig config,
                       ParseHuggingFaceConfig(kLlama, ""));
  EXPECT_EQ(config.family, "llama");
  EXPECT_EQ(config.num_layers, 16);
  EXPECT_EQ(config.hidden_size, 2048);
  EXPECT_EQ(config.num_heads, 32);
  EXPECT_EQ(config.num_kv_heads, 8);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.intermediate_size, 8192);
  EXPECT_EQ(config.vocab_size, 128256);
  EXPECT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_EQ(config.rope_theta, 5e5f);
  EXPECT_EQ(config.max_position, 131072);
  EXPECT_EQ(config.sliding_window, 0);
  EXPECT_TRUE(config.tie_embeddings);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_FALSE(config.qk_norm);
  EXPECT_EQ(config.bos_id, 128000);
  EXPECT_THAT(config.eos_ids, ElementsAre(128001, 128008, 128009));
  RopeScaling expected;
  expected.type = RopeScalingType::kLlama3;
  expected.factor = 32;
  expected.original_max_position = 8192;
  expected.low_freq_factor = 1;
  expected.high_freq_factor = 4;
  EXPECT_EQ(config.rope_scaling, expected);
}

TEST(HuggingFaceConfigTest, Transformers5SaysTheSameInRopeParameters) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig old_form, Parse("{}"));
  ASSERT_OK_AND_ASSIGN(const ModelConfig new_form,
                       Parse(R"({"rope_scaling": null, "rope_theta": null,
      "rope_parameters": {"rope_theta": 500000.0, "factor": 32.0,
      "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3",
      "original_max_position_embeddings": 8192}})"));
  EXPECT_EQ(old_form, new_form);
}

TEST(HuggingFaceConfigTest, AbsentFieldsTakeTransformersDefaults) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig config,
                       Parse(R"({"num_key_value_heads": null, "head_dim": null,
      "rms_norm_eps": null, "rope_theta": null, "rope_scaling": null,
      "tie_word_embeddings": null, "hidden_act": null, "bos_token_id": null,
      "eos_token_id": null, "architectures": null})"));
  EXPECT_EQ(config.num_kv_heads, 32);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.rms_norm_eps, 1e-6f);
  EXPECT_EQ(config.rope_theta, 10000);
  EXPECT_EQ(config.rope_scaling, RopeScaling());
  EXPECT_FALSE(config.tie_embeddings);
  EXPECT_EQ(config.bos_id, -1);
  EXPECT_TRUE(config.eos_ids.empty());
}

TEST(HuggingFaceConfigTest, GenerationConfigHasTheLastWordOnEndTokens) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig replaced,
                       Parse("{}", R"({"eos_token_id": [7, 9]})"));
  EXPECT_THAT(replaced.eos_ids, ElementsAre(7, 9));
  ASSERT_OK_AND_ASSIGN(const ModelConfig kept,
                       Parse(R"({"eos_token_id": 5})", R"({"top_p": 0.9})"));
  EXPECT_THAT(kept.eos_ids, ElementsAre(5));
  EXPECT_THAT(Parse("{}", "["),
              StatusIs(kInvalid, HasSubstr("generation_config.json is not")));
}

TEST(HuggingFaceConfigTest, Qwen2HasBiasesAndQwen3HeadNorms) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig qwen2,
                       Parse(R"({"model_type": "qwen2", "max_window_layers": 4,
      "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": false,
      "sliding_window": 4096})"));
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.qk_norm);
  EXPECT_EQ(qwen2.sliding_window, 0);
  ASSERT_OK_AND_ASSIGN(const ModelConfig qwen3,
                       Parse(R"({"model_type": "qwen3", "head_dim": null,
      "architectures": ["Qwen3ForCausalLM"]})"));
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_FALSE(qwen3.qkv_bias);
  EXPECT_EQ(qwen3.head_dim, 128);  // not hidden_size / num_attention_heads
}

TEST(HuggingFaceConfigTest, SlidingWindowOfAllLayers) {
  const auto window = [](absl::string_view fields) {
    const auto config =
        Parse(absl::StrCat(R"({"architectures": null, )", fields, "}"));
    EXPECT_OK(config);
    return config.ok() ? config->sliding_window : -1;
  };
  EXPECT_EQ(window(R"("model_type":"mistral","sliding_window":512)"), 512);
  // transformers' default when the field is absent.
  EXPECT_EQ(window(R"("model_type":"mistral")"), 4096);
  EXPECT_EQ(window(R"("model_type":"qwen2","use_sliding_window":true,
      "sliding_window":256,"max_window_layers":0)"),
            256);
  EXPECT_EQ(window(R"("model_type":"qwen2","use_sliding_window":true,
      "sliding_window":256,"max_window_layers":16)"),
            0);
  EXPECT_EQ(window(R"("model_type":"qwen3","use_sliding_window":true,
      "sliding_window":256,"layer_types":["sliding_attention",
      "sliding_attention"])"),
            256);
  // null, which merge_patch cannot express.
  Json json = Json::parse(kLlama);
  json["model_type"] = "mistral";
  json["architectures"] = {"MistralForCausalLM"};
  json["sliding_window"] = nullptr;
  ASSERT_OK_AND_ASSIGN(const ModelConfig none,
                       ParseHuggingFaceConfig(json.dump(), ""));
  EXPECT_EQ(none.sliding_window, 0);
}

TEST(HuggingFaceConfigTest, YarnResolvesItsAttentionFactor) {
  const auto yarn = [](absl::string_view fields) {
    const auto config = Parse(absl::StrCat(
        R"({"rope_scaling": null, "rope_parameters": {"rope_type": "yarn",)",
        R"("original_max_position_embeddings": 32768)", fields, "}}"));
    EXPECT_OK(config);
    return config.ok() ? config->rope_scaling : RopeScaling();
  };
  const RopeScaling plain = yarn(R"(, "factor": 4.0)");
  EXPECT_EQ(plain.type, RopeScalingType::kYarn);
  EXPECT_EQ(plain.factor, 4);
  EXPECT_EQ(plain.original_max_position, 32768);
  EXPECT_EQ(plain.beta_fast, 32);
  EXPECT_EQ(plain.beta_slow, 1);
  EXPECT_TRUE(plain.truncate);
  EXPECT_FLOAT_EQ(plain.attention_factor, 1.1386294f);  // 0.1 ln 4 + 1
  // max_position_embeddings / original_max_position_embeddings.
  EXPECT_EQ(yarn("").factor, 4);
  EXPECT_EQ(yarn(R"(, "factor": 4, "attention_factor": 0.5)").attention_factor,
            0.5f);
  // (0.1 * 2 ln 4 + 1) / (0.1 ln 4 + 1)
  EXPECT_FLOAT_EQ(yarn(R"(, "factor": 4, "mscale": 2.0, "mscale_all_dim": 1.0)")
                      .attention_factor,
                  1.1217511f);
  EXPECT_FALSE(yarn(R"(, "factor": 4, "truncate": false)").truncate);
}

struct Refusal {
  const char* name;
  const char* changes;
  absl::StatusCode code;
  const char* message;
};

class HuggingFaceRefusalTest : public ::testing::TestWithParam<Refusal> {};

TEST_P(HuggingFaceRefusalTest, NamesTheFieldAndTheReason) {
  EXPECT_THAT(Parse(GetParam().changes),
              StatusIs(GetParam().code, AllOf(HasSubstr("config.json: "),
                                              HasSubstr(GetParam().message))));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, HuggingFaceRefusalTest,
    ::testing::Values(
        Refusal{"OtherFamily", R"({"model_type": "gemma3"})", kUnimplemented,
                "model_type is \"gemma3\"; KVmix runs llama, mistral, qwen2, "
                "qwen3"},
        Refusal{"NoFamily", R"({"model_type": null})", kUnimplemented,
                "model_type is \"\""},
        Refusal{"OtherHead",
                R"({"architectures": ["LlamaForSequenceClassification"]})",
                kUnimplemented,
                "architectures is \"LlamaForSequenceClassification\""},
        Refusal{"OwnCode", R"({"auto_map": {"AutoModel": "x.Y"}})",
                kUnimplemented, "auto_map is set"},
        Refusal{"Quantized",
                R"({"quantization_config": {"quant_method": "gptq"}})",
                kUnimplemented, "fetch the unquantized model or a GGUF file"},
        Refusal{"Experts", R"({"num_local_experts": 8})", kUnimplemented,
                "mixtures of experts are not supported"},
        Refusal{"Activation", R"({"hidden_act": "gelu"})", kUnimplemented,
                "hidden_act is \"gelu\"; KVmix computes silu"},
        Refusal{"AttentionBias", R"({"attention_bias": true})", kUnimplemented,
                "attention_bias is true"},
        Refusal{"MlpBias", R"({"mlp_bias": true})", kUnimplemented,
                "mlp_bias is true"},
        Refusal{"NotCausal", R"({"is_causal": false})", kUnimplemented,
                "is_causal is false"},
        Refusal{"Bidirectional", R"({"use_bidirectional_attention": true})",
                kUnimplemented, "use_bidirectional_attention is true"},
        Refusal{"PartialRotary", R"({"partial_rotary_factor": 0.5})",
                kUnimplemented, "partial_rotary_factor is 0.5"},
        Refusal{"PartialRotaryInside",
                R"({"rope_scaling": null,
                    "rope_parameters": {"partial_rotary_factor": 0.25}})",
                kUnimplemented,
                "rope_parameters.partial_rotary_factor is 0.25"},
        Refusal{"DynamicRope", R"({"rope_scaling": {"rope_type": "dynamic"}})",
                kUnimplemented,
                "rope_scaling.rope_type is \"dynamic\"; KVmix "
                "computes default, linear, llama3 and yarn"},
        Refusal{"LongRope",
                R"({"rope_scaling": {"rope_type": null, "type": "longrope"}})",
                kUnimplemented, "rope_type is \"longrope\""},
        Refusal{"UnknownRopeField",
                R"({"rope_scaling": {"mrope_section": [1]}})", kUnimplemented,
                "rope_scaling.mrope_section is not known"},
        Refusal{"RopePerLayerType",
                R"({"rope_parameters": {"full_attention": {}}})",
                kUnimplemented, "rope_parameters.full_attention is not known"},
        Refusal{"TwoRopes", R"({"rope_parameters": {"rope_type": "linear",
                                "factor": 2.0}})",
                kInvalid, "say different things; remove one"},
        Refusal{"RopeNotAnObject", R"({"rope_scaling": 4})", kInvalid,
                "rope_scaling must be an object"},
        Refusal{"NoRopeFactor", R"({"rope_scaling": {"factor": null}})",
                kInvalid, "rope_scaling.factor is missing"},
        Refusal{"RopeFactorBelowOne", R"({"rope_scaling": {"factor": 0.5}})",
                kInvalid, "rope_scaling.factor is 0.5"},
        Refusal{"RopeFactorHuge", R"({"rope_scaling": {"factor": 1e300}})",
                kInvalid, "rope_scaling.factor is inf"},
        Refusal{"RopeBands", R"({"rope_scaling": {"high_freq_factor": 1.0}})",
                kInvalid,
                "rope_scaling.high_freq_factor is 1 but must be in "
                "(1, 1e6]"},
        Refusal{"RopeOriginal",
                R"({"rope_scaling": {"original_max_position_embeddings": 0}})",
                kInvalid, "original_max_position_embeddings is 0"},
        Refusal{"WindowOfSomeLayers",
                R"({"model_type": "qwen2", "architectures": null,
                    "use_sliding_window": true, "sliding_window": 256,
                    "max_window_layers": 8})",
                kUnimplemented, "max_window_layers is 8"},
        Refusal{"MixedLayerTypes",
                R"({"model_type": "qwen3", "architectures": null,
                    "layer_types": ["full_attention", "sliding_attention"]})",
                kUnimplemented, "layer_types is of several kinds"},
        Refusal{"UnknownLayerType",
                R"({"model_type": "qwen3", "architectures": null,
                    "layer_types": ["linear_attention"]})",
                kUnimplemented, "layer_types is of an unknown kind"},
        Refusal{"MissingSize", R"({"hidden_size": null})", kInvalid,
                "hidden_size is missing"},
        Refusal{"TextSize", R"({"hidden_size": "2048"})", kInvalid,
                "hidden_size is of type string but must be an integer"},
        Refusal{"FractionalSize", R"({"hidden_size": 2048.5})", kInvalid,
                "hidden_size is of type number but must be an integer"},
        Refusal{"SizeOver32Bits", R"({"hidden_size": 18446744073709551615})",
                kInvalid, "hidden_size is 18446744073709551615 but must fit"},
        Refusal{"NoHeads", R"({"num_attention_heads": 0, "head_dim": null})",
                kInvalid, "head count is 0"},
        Refusal{"HeadsDoNotDivide",
                R"({"num_attention_heads": 3, "head_dim": null})", kInvalid,
                "head count is 3 but must divide hidden size 2048"},
        Refusal{"TextFlag", R"({"tie_word_embeddings": "yes"})", kInvalid,
                "tie_word_embeddings is of type string but must be true or"},
        Refusal{"TextEps", R"({"rms_norm_eps": "1e-5"})", kInvalid,
                "rms_norm_eps is of type string but must be a number"},
        Refusal{"EndTokenOutside", R"({"eos_token_id": 128256})", kInvalid,
                "eos_ids is 128256 but must be in [0, 128255]"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(HuggingFaceConfigTest, WhatIsNoObjectIsRefused) {
  for (const char* text : {"", "[]", "nul", "{\"a\":}", "\xff", "{} {}"})
    EXPECT_THAT(
        ParseHuggingFaceConfig(text, ""),
        StatusIs(kInvalid, HasSubstr("config.json is not a JSON object")));
  EXPECT_THAT(ParseHuggingFaceConfig(std::string(2 << 20, '['), ""),
              StatusIs(kInvalid, HasSubstr("1048576 are read")));
}

ModelConfig Valid() { return *ParseHuggingFaceConfig(kLlama, ""); }

struct BadValue {
  const char* name;
  void (*spoil)(ModelConfig&);
  const char* message;
};

class ValidateTest : public ::testing::TestWithParam<BadValue> {};

TEST_P(ValidateTest, NamesTheFieldItsValueAndTheRule) {
  ModelConfig config = Valid();
  ASSERT_OK(Validate(config));
  GetParam().spoil(config);
  EXPECT_THAT(Validate(config),
              StatusIs(kInvalid, HasSubstr(GetParam().message)));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, ValidateTest,
    ::testing::Values(
        BadValue{"Family", [](auto& c) { c.family = "gpt2"; },
                 "family is \"gpt2\"; KVmix runs llama"},
        BadValue{"NoLayers", [](auto& c) { c.num_layers = 0; },
                 "num_layers is 0 but must be in [1, 1024]"},
        BadValue{"ManyLayers", [](auto& c) { c.num_layers = 1 << 30; },
                 "num_layers is 1073741824"},
        BadValue{"Hidden", [](auto& c) { c.hidden_size = -5; },
                 "hidden_size is -5"},
        BadValue{"Heads", [](auto& c) { c.num_heads = 1 << 20; },
                 "num_heads is 1048576"},
        BadValue{"KvHeads", [](auto& c) { c.num_kv_heads = 5; },
                 "num_kv_heads is 5 but must divide num_heads 32"},
        BadValue{"KvHeadsZero", [](auto& c) { c.num_kv_heads = 0; },
                 "num_kv_heads is 0"},
        BadValue{"HeadDimOdd", [](auto& c) { c.head_dim = 63; },
                 "head_dim is 63 but must be even"},
        BadValue{"HeadDimHuge", [](auto& c) { c.head_dim = 1 << 16; },
                 "head_dim is 65536"},
        BadValue{"Intermediate", [](auto& c) { c.intermediate_size = 0; },
                 "intermediate_size is 0"},
        BadValue{"Vocabulary", [](auto& c) { c.vocab_size = 1 << 30; },
                 "vocab_size is 1073741824"},
        BadValue{"MaxPosition", [](auto& c) { c.max_position = 0; },
                 "max_position is 0"},
        BadValue{"Window", [](auto& c) { c.sliding_window = -1; },
                 "sliding_window is -1"},
        BadValue{"EpsZero", [](auto& c) { c.rms_norm_eps = 0; },
                 "rms_norm_eps is 0"},
        BadValue{"EpsNaN",
                 [](auto& c) {
                   c.rms_norm_eps = std::numeric_limits<float>::quiet_NaN();
                 },
                 "rms_norm_eps is nan"},
        BadValue{"ThetaZero", [](auto& c) { c.rope_theta = 0; },
                 "rope_theta is 0"},
        BadValue{"ThetaInfinite",
                 [](auto& c) {
                   c.rope_theta = std::numeric_limits<float>::infinity();
                 },
                 "rope_theta is inf"},
        BadValue{"LowFreqFactor",
                 [](auto& c) { c.rope_scaling.low_freq_factor = 0; },
                 "rope_scaling.low_freq_factor is 0"},
        BadValue{"BetaSlow",
                 [](auto& c) {
                   c.rope_scaling.type = RopeScalingType::kYarn;
                   c.rope_scaling.beta_slow = 0;
                 },
                 "rope_scaling.beta_slow is 0"},
        BadValue{"BetaFast",
                 [](auto& c) {
                   c.rope_scaling.type = RopeScalingType::kYarn;
                   c.rope_scaling.beta_fast = 0.5f;
                 },
                 "rope_scaling.beta_fast"},
        BadValue{"AttentionFactor",
                 [](auto& c) {
                   c.rope_scaling.type = RopeScalingType::kYarn;
                   c.rope_scaling.attention_factor = 0;
                 },
                 "rope_scaling.attention_factor is 0"},
        BadValue{"DivisorCount",
                 [](auto& c) {
                   c.rope_scaling.type = RopeScalingType::kPerChannel;
                   c.rope_scaling.frequency_divisors.assign(31, 1.0f);
                 },
                 "frequency_divisors has 31 entries but must have 32"},
        BadValue{"DivisorZero",
                 [](auto& c) {
                   c.rope_scaling.type = RopeScalingType::kPerChannel;
                   c.rope_scaling.frequency_divisors.assign(32, 0.0f);
                 },
                 "frequency_divisors is 0"},
        BadValue{"Bos", [](auto& c) { c.bos_id = c.vocab_size; },
                 "bos_id is 128256"},
        BadValue{"Eos", [](auto& c) { c.eos_ids = {-1}; }, "eos_ids is -1"},
        BadValue{"ManyEos", [](auto& c) { c.eos_ids.assign(65, 1); },
                 "eos_ids has 65 entries"}),
    [](const auto& info) { return std::string(info.param.name); });

// A GGUF header of a small llama, one field of which a test replaces or adds.
GgufTestWriter LlamaHeader(absl::string_view architecture = "llama") {
  const auto key = [&](const char* suffix) {
    return absl::StrCat(architecture, ".", suffix);
  };
  GgufTestWriter writer;
  writer.String("general.architecture", architecture)
      .Int(key("block_count"), 2)
      .Int(key("context_length"), 64)
      .Int(key("embedding_length"), 16)
      .Int(key("feed_forward_length"), 24)
      .Int(key("attention.head_count"), 4)
      .Int(key("attention.head_count_kv"), 2)
      .Float(key("attention.layer_norm_rms_epsilon"), 1e-5f)
      .FloatTensor("token_embd.weight", {20, 16}, std::vector<float>(320));
  return writer;
}

absl::StatusOr<ModelConfig> ParseGguf(const GgufTestWriter& writer) {
  const ExactCopy copy(writer.Build());
  KVMIX_ASSIGN_OR_RETURN(const auto file,
                         GgufFile::FromBytes(copy.view, copy.owner, "m.gguf"));
  return ParseGgufConfig(*file);
}

TEST(GgufConfigTest, ReadsAllThatAHeaderHas) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig config,
                       ParseGguf(LlamaHeader("qwen3")
                                     .Int("qwen3.attention.key_length", 8)
                                     .Int("qwen3.attention.value_length", 8)
                                     .Int("qwen3.attention.sliding_window", 32)
                                     .Float("qwen3.rope.freq_base", 1e6f)
                                     .Int("tokenizer.ggml.bos_token_id", 1)
                                     .Int("tokenizer.ggml.eos_token_id", 2)
                                     .Int("tokenizer.ggml.eot_token_id", 3)
                                     .FloatTensor("output.weight", {20, 16},
                                                  std::vector<float>(320))));
  const ModelConfig expected = {.family = "qwen3",
                                .num_layers = 2,
                                .hidden_size = 16,
                                .num_heads = 4,
                                .num_kv_heads = 2,
                                .head_dim = 8,
                                .intermediate_size = 24,
                                .vocab_size = 20,
                                .rms_norm_eps = 1e-5f,
                                .rope_theta = 1e6f,
                                .rope_scaling = {},
                                .max_position = 64,
                                .sliding_window = 32,
                                .tie_embeddings = false,
                                .qkv_bias = false,
                                .qk_norm = true,
                                .bos_id = 1,
                                .eos_ids = {2, 3}};
  EXPECT_EQ(config, expected);
}

TEST(GgufConfigTest, OutputMatrixMissingMeansTied) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, ParseGguf(LlamaHeader()));
  EXPECT_TRUE(config.tie_embeddings);
  EXPECT_EQ(config.head_dim, 4);
  EXPECT_EQ(config.bos_id, -1);
}

TEST(GgufConfigTest, RopeScaling) {
  ASSERT_OK_AND_ASSIGN(
      const ModelConfig linear,
      ParseGguf(LlamaHeader()
                    .String("llama.rope.scaling.type", "linear")
                    .Float("llama.rope.scaling.factor", 4)));
  EXPECT_EQ(linear.rope_scaling.type, RopeScalingType::kLinear);
  EXPECT_EQ(linear.rope_scaling.factor, 4);

  ASSERT_OK_AND_ASSIGN(
      const ModelConfig yarn,
      ParseGguf(LlamaHeader()
                    .String("llama.rope.scaling.type", "yarn")
                    .Float("llama.rope.scaling.factor", 4)
                    .Int("llama.rope.scaling.original_context_length", 16)));
  EXPECT_EQ(yarn.rope_scaling.type, RopeScalingType::kYarn);
  EXPECT_EQ(yarn.rope_scaling.original_max_position, 16);
  EXPECT_FLOAT_EQ(yarn.rope_scaling.attention_factor, 1.1386294f);

  ASSERT_OK_AND_ASSIGN(
      const ModelConfig tensor,
      ParseGguf(LlamaHeader().FloatTensor("rope_freqs.weight", {2}, {1, 8})));
  EXPECT_EQ(tensor.rope_scaling.type, RopeScalingType::kPerChannel);
  EXPECT_THAT(tensor.rope_scaling.frequency_divisors, ElementsAre(1, 8));
}

TEST(GgufConfigTest, RefusesWhatItWouldRunWrongly) {
  const auto refused = [](const GgufTestWriter& writer, absl::StatusCode code,
                          const char* message) {
    EXPECT_THAT(ParseGguf(writer), StatusIs(code, HasSubstr(message)));
  };
  refused(LlamaHeader("gemma3"), kUnimplemented,
          "\"general.architecture\" is \"gemma3\"; KVmix runs llama");
  refused(GgufTestWriter(), absl::StatusCode::kNotFound,
          "general.architecture");
  refused(LlamaHeader().String("general.type", "adapter"), kUnimplemented,
          "give the file of the base model");
  refused(LlamaHeader().Raw("split.count", 2, Bytes<uint16_t>(3)),
          kUnimplemented, "split over 3 GGUF files; merge them first");
  refused(LlamaHeader().Int("llama.expert_count", 8), kUnimplemented,
          "\"llama.expert_count\" is 8 but must be 0");
  refused(LlamaHeader().Float("llama.logit_scale", 2), kUnimplemented,
          "\"llama.logit_scale\" is not known");
  refused(LlamaHeader().Bool("llama.attention.causal", false), kUnimplemented,
          "llama.attention.causal");
  refused(LlamaHeader().Int("llama.rope.dimension_count", 2), kUnimplemented,
          "\"llama.rope.dimension_count\" is 2 but must be 4");
  refused(LlamaHeader().Int("llama.attention.value_length", 8), kUnimplemented,
          "llama.attention.value_length");
  refused(LlamaHeader().String("llama.rope.scaling.type", "longrope"),
          kUnimplemented, "is \"longrope\" but must be none, linear or yarn");
  refused(LlamaHeader()
              .String("llama.rope.scaling.type", "linear")
              .Float("llama.rope.scaling.factor", 0),
          kInvalid, "rope_scaling.factor is 0");
  refused(LlamaHeader()
              .String("llama.rope.scaling.type", "linear")
              .FloatTensor("rope_freqs.weight", {2}, {1, 1}),
          kUnimplemented, "KVmix applies one of them");
  refused(LlamaHeader().FloatTensor("rope_freqs.weight", {3}, {1, 1, 1}),
          kInvalid, "has shape [3] in the file but the model needs [2]");
  refused(LlamaHeader().FloatTensor("rope_freqs.weight", {2}, {1, 0}), kInvalid,
          "frequency_divisors is 0");
  refused(LlamaHeader().Int("tokenizer.ggml.eos_token_id", 20), kInvalid,
          "eos_ids is 20 but must be in [0, 19]");
  refused(LlamaHeader().Int("tokenizer.ggml.bos_token_id", 4294967295u),
          kInvalid, "bos_token_id is 4294967295 but must fit 32 bits");
}

TEST(ExpectedTensorsTest, FollowsTheConfiguration) {
  ModelConfig config = Valid();
  config.num_layers = 1;
  config.tie_embeddings = true;
  EXPECT_EQ(ExpectedTensors(config).size(), 2u + 9u);
  config.tie_embeddings = false;
  config.qkv_bias = true;
  config.qk_norm = true;
  const auto expected = ExpectedTensors(config);
  EXPECT_EQ(expected.size(), 3u + 9u + 3u + 2u);
  for (const ExpectedTensor& tensor : expected) {
    if (tensor.name == "model.layers.0.self_attn.k_proj.weight") {
      EXPECT_THAT(tensor.shape, ElementsAre(8 * 64, 2048));
    }
    if (tensor.name == "model.layers.0.mlp.down_proj.weight") {
      EXPECT_THAT(tensor.shape, ElementsAre(2048, 8192));
    }
  }
}

}  // namespace
}  // namespace kvmix
