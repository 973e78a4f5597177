// The whole model on the device against Transformer, in every family and mode.
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "attention/test_policies.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvmix/base/status_matchers.h"
#include "models/device_model.h"
#include "models/test_model.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::KeepAll;
using testing::KeepRecent;
using testing::RandomTokens;
using testing::RandomWeights;
using testing::SmallConfig;
using testing::StatusIs;

CachePlan FullPrecisionPlan(const ModelConfig& config) {
  CachePlan plan;
  for (int i = 0; i < config.num_layers; ++i) {
    LayerPlan& layer = *plan.add_layer();
    layer.mutable_key()->set_bits(16);
    layer.mutable_value()->set_bits(16);
  }
  return plan;
}

std::shared_ptr<const RecencyPolicy> KeepEverything() {
  return std::make_shared<KeepRecent>(testing::KeepRecentOptions{.ratio = 1});
}

std::unique_ptr<DeviceModel> LoadDevice(const ModelConfig& config,
                                        const WeightSource& weights,
                                        const DeviceModelOptions& options) {
  static ThreadPool threads(1);  // outlives the model
  auto model = LoadCudaModel(config, weights, options, threads);
  EXPECT_OK(model.status());
  return *std::move(model);
}

std::unique_ptr<DeviceSequences> NewSequences(DeviceModel& model, int count) {
  auto sequences =
      model.NewSequences(FullPrecisionPlan(model.config()), KeepEverything(),
                         {.num_sequences = count,
                          .max_tokens = 64,
                          .max_chunk_tokens = 64,
                          .eviction = std::make_shared<KeepAll>()});
  EXPECT_OK(sequences.status());
  return *std::move(sequences);
}

// Rows of logits by chunk.
using Rows = std::vector<std::vector<float>>;

Rows DeviceLogits(DeviceModel& model, DeviceSequences& sequences,
                  const std::vector<DeviceChunk>& batch) {
  Rows logits(batch.size());
  const int64_t vocab = model.config().vocab_size;
  EXPECT_OK(model.Forward(
      sequences, batch, [&](int chunk, int64_t, int64_t rows, const float* x) {
        logits[chunk].insert(logits[chunk].end(), x, x + rows * vocab);
        return absl::OkStatus();
      }));
  return logits;
}

void ExpectNear(const Rows& got, const Rows& want, double tolerance) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t c = 0; c < want.size(); ++c) {
    ASSERT_EQ(got[c].size(), want[c].size()) << "chunk " << c;
    for (size_t i = 0; i < want[c].size(); ++i)
      ASSERT_NEAR(got[c][i], want[c][i], tolerance) << "chunk " << c;
  }
}

// Logits of these models are about 1. Attention on the device rounds queries
// and softmax weights to half, 2^-11 of each. Largest difference of all float
// cases: 0.0087; 0.0016 if the kernel is given each of them as a sum of two
// halves, so that nothing is lost (queries alone: 0.0031, weights alone:
// 0.0087). What is left comes from keys and values that round to another half;
// sequences without one differ by 2e-6.
constexpr double kFloatTolerance = 0.01;

// A prompt, then a longer chunk, then decode steps, of three sequences that
// differ in length; on the CPU and on the device.
void ExpectSameAsCpu(const ModelConfig& config,
                     const DeviceModelOptions& options, double tolerance) {
  const RandomWeights weights(config);
  auto cpu = Transformer::Load(config, weights,
                               {.num_threads = 1, .compute = options.compute});
  ASSERT_OK(cpu.status());
  auto device = LoadDevice(config, weights, options);
  auto sequences = NewSequences(*device, 3);
  std::vector<std::unique_ptr<KvCache>> caches;
  for (int s = 0; s < 3; ++s)
    caches.push_back(testing::FullPrecisionCache(**cpu));
  const std::vector<int32_t> tokens = RandomTokens(config, 60);
  int64_t at = 0;
  const auto pass = [&](const std::vector<int>& lengths, WantLogits logits) {
    std::vector<Chunk> on_cpu;
    std::vector<DeviceChunk> on_device;
    for (int s = 0; s < 3; ++s) {
      if (lengths[s] == 0) continue;
      const auto chunk = absl::MakeConstSpan(tokens).subspan(at, lengths[s]);
      at += lengths[s];
      on_cpu.push_back({chunk, caches[s].get(), logits});
      on_device.push_back({s, chunk, logits});
    }
    ExpectNear(DeviceLogits(*device, *sequences, on_device),
               testing::Logits(**cpu, on_cpu), tolerance);
    for (int s = 0; s < 3; ++s)
      EXPECT_EQ(sequences->num_tokens(s), caches[s]->num_tokens(0));
  };
  pass({7, 1, 12}, WantLogits::kAll);
  pass({5, 6, 0}, WantLogits::kLast);
  pass({1, 1, 1}, WantLogits::kAll);
  pass({1, 1, 1}, WantLogits::kLast);  // replays a graph
  pass({1, 0, 1}, WantLogits::kLast);
  pass({1, 1, 1}, WantLogits::kAll);
}

TEST(CudaModelTest, LlamaIsTheCpusWithAndWithoutGraphs) {
  ExpectSameAsCpu(SmallConfig(), {}, kFloatTolerance);
  ExpectSameAsCpu(SmallConfig(), {.use_graphs = false}, kFloatTolerance);
}

TEST(CudaModelTest, BFloat16IsTheCpusWithinItsRounding) {
  // What attention rounds to half lets inputs of products round to the other
  // bf16: units of 2^-8 of numbers near 1, over 3 layers. Largest difference:
  // 0.062; 5e-7 if attention rounds nothing, as above.
  ExpectSameAsCpu(SmallConfig(), {.compute = ComputeType::kBFloat16}, 0.15);
}

TEST(CudaModelTest, Qwen2HasBiases) {
  ModelConfig config = SmallConfig();
  config.family = "qwen2";
  config.qkv_bias = true;
  config.tie_embeddings = true;
  ExpectSameAsCpu(config, {}, kFloatTolerance);
}

TEST(CudaModelTest, Qwen3HasNormsOfHeads) {
  ModelConfig config = SmallConfig();
  config.family = "qwen3";
  config.qk_norm = true;
  ExpectSameAsCpu(config, {}, kFloatTolerance);
}

TEST(CudaModelTest, MistralHasASlidingWindow) {
  ModelConfig config = SmallConfig();
  config.family = "mistral";
  config.sliding_window = 5;
  ExpectSameAsCpu(config, {}, kFloatTolerance);
}

// Every signal of every layer, copied.
using Signals = std::map<std::pair<int, std::string>, std::vector<float>>;

void CopySignals(const LayerTrace& trace, Signals& signals) {
  const int64_t kv_size = int64_t{trace.num_kv_heads} * trace.head_dim;
  const int64_t states = trace.num_tokens * kv_size;
  const int64_t projection = kv_size * trace.hidden_size;
  const auto copy = [&](const char* name, const float* x, int64_t size) {
    ASSERT_NE(x, nullptr) << name;
    signals[{trace.layer, name}].assign(x, x + size);
  };
  copy("key", trace.key_states, states);
  copy("value", trace.value_states, states);
  copy("key gradient", trace.key_state_gradient, states);
  copy("value gradient", trace.value_state_gradient, states);
  copy("W_k gradient", trace.key_projection_gradient, projection);
  copy("W_v gradient", trace.value_projection_gradient, projection);
  copy("query", trace.query_states,
       trace.num_tokens * trace.num_heads * trace.head_dim);
  copy("W_k", trace.key_projection, projection);
  copy("W_v", trace.value_projection, projection);
}

// Numbers differ by the order of sums in float: 1e-4 of a signal's largest.
void ExpectSameTraces(const ModelConfig& config) {
  const RandomWeights weights(config);
  auto cpu = testing::Load(config, weights, 1);
  auto device = LoadDevice(config, weights, {});
  const std::vector<int32_t> tokens = RandomTokens(config, 40);
  const TraceOptions options = {
      .signals = {Signal::kKeyStates, Signal::kValueStates,
                  Signal::kKeyStateGradient, Signal::kValueStateGradient,
                  Signal::kKeyProjectionGradient,
                  Signal::kValueProjectionGradient, Signal::kQueryStates,
                  Signal::kKeyProjection, Signal::kValueProjection}};
  Signals want, got;
  const auto want_loss =
      TraceLayers(*cpu, tokens, options, [&](const LayerTrace& trace) {
        CopySignals(trace, want);
        return absl::OkStatus();
      });
  ASSERT_OK(want_loss.status());
  const auto loss =
      device->TraceLayers(tokens, options, [&](const LayerTrace& trace) {
        CopySignals(trace, got);
        return absl::OkStatus();
      });
  ASSERT_OK(loss.status());
  EXPECT_NEAR(*loss, *want_loss, 1e-4);
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, x] : want) {
    double largest = 0;
    for (const float v : x) largest = std::max(largest, std::abs(double{v}));
    EXPECT_GT(largest, 0) << name.second;
    const std::vector<float>& y = got[name];
    ASSERT_EQ(y.size(), x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_NEAR(y[i], x[i], 1e-4 * largest)
          << "layer " << name.first << " " << name.second << " " << i;
    }
  }
}

TEST(CudaModelTest, GradientsAreTheCpus) { ExpectSameTraces(SmallConfig()); }

TEST(CudaModelTest, GradientsPassBiasesNormsAndWindows) {
  ModelConfig config = SmallConfig();
  config.family = "qwen2";
  config.qkv_bias = true;
  config.tie_embeddings = true;
  ExpectSameTraces(config);
  config = SmallConfig();
  config.family = "qwen3";
  config.qk_norm = true;
  ExpectSameTraces(config);
  config = SmallConfig();
  config.family = "mistral";
  config.sliding_window = 7;
  ExpectSameTraces(config);
}

TEST(CudaModelTest, WhatCannotRunIsAnError) {
  const ModelConfig config = SmallConfig();
  const RandomWeights weights(config);
  auto model = LoadDevice(config, weights, {});
  auto sequences = NewSequences(*model, 2);
  const auto forward = [&](const std::vector<DeviceChunk>& batch) {
    return model->Forward(
        *sequences, batch,
        [](int, int64_t, int64_t, const float*) { return absl::OkStatus(); });
  };
  const std::vector<int32_t> outside = {3, 80};
  EXPECT_THAT(forward({{.sequence = 2, .tokens = outside}}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("batch[0].sequence is 2 but must be in [0, "
                                 "2)")));
  EXPECT_THAT(forward({{.sequence = 0, .tokens = outside}}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("batch[0].tokens[1] is 80")));
  EXPECT_THAT(forward({{.sequence = 0, .tokens = {}}}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("batch[0].tokens is empty")));
  ThreadPool threads(1);
  EXPECT_THAT(
      LoadCudaModel(config, weights, {.compute = ComputeType::kInt8}, threads)
          .status(),
      StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("INT8")));
}

}  // namespace
}  // namespace kvmix
