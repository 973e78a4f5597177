// Plans and policies that no kernels serve, on a model on the device, against
// Transformer with the same caches; and what is said of where they lie.
#include "models/cuda_host_sequences.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "gmock/gmock.h"
#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"
#include "kvmix/base/component.pb.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "models/device_model.h"
#include "models/test_model.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::RandomTokens;
using testing::RandomWeights;
using testing::StatusIs;

constexpr int64_t kMaxTokens = 160;

ModelConfig Config() {
  ModelConfig config = testing::SmallConfig();
  config.head_dim = 32;
  return config;
}

template <typename Interface>
std::unique_ptr<Interface> Made(const std::string& text) {
  Component component;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &component));
  auto made = Registry<Interface>::Get().Make(component, "component");
  EXPECT_OK(made);
  return *std::move(made);
}

std::string WithOptions(const std::string& name, const std::string& type,
                        const std::string& options) {
  return absl::StrCat("name: '", name,
                      "' options { [type.googleapis.com/kvmix.", type, "] { ",
                      options, " } }");
}

// A way to store a cache, as components' text.
struct Storage {
  std::string why;  // part of WhyOnHost
  std::string quantizer = "name: 'group_affine'";
  int bits = 4;
  int other_head_bits = 0;  // of the second KV head's keys; 0: the same
  std::string recency = "name: 'none'";
  std::string eviction = "name: 'keep_all'";
  CachePlan::FullPrecision full_precision = CachePlan::HALF;

  QuantFormat Format(Side side, int format_bits) const {
    auto format = Made<Quantizer>(quantizer)->FormatFor(side, format_bits,
                                                        Config().head_dim);
    EXPECT_OK(format);
    return *format;
  }
  CachePlan Plan() const {
    CachePlan plan;
    plan.set_full_precision(full_precision);
    for (int i = 0; i < Config().num_layers; ++i) {
      LayerPlan& layer = *plan.add_layer();
      const QuantFormat key = Format(Side::kKey, bits);
      *layer.mutable_value() = Format(Side::kValue, bits);
      if (other_head_bits == 0) {
        *layer.mutable_key() = key;
      } else {
        *layer.add_key_head() = key;
        *layer.add_key_head() = Format(Side::kKey, other_head_bits);
      }
    }
    return plan;
  }
  std::shared_ptr<const RecencyPolicy> Recency() const {
    return Made<RecencyPolicy>(recency);
  }
  std::shared_ptr<const EvictionPolicy> Eviction() const {
    return Made<EvictionPolicy>(eviction);
  }
};

Storage Turbo() {
  return {.why = "layer 0 keys: quantizer \"turbo\" has no kernels",
          .quantizer = "name: 'turbo'",
          .bits = 3};
}
Storage Demoting() {
  return {.why = "the eviction policy demotes tokens",
          .bits = 8,
          .eviction = WithOptions(
              "demote", "DemoteOptions",
              absl::StrCat("inner { ",
                           WithOptions("h2o", "ScoredEvictionOptions",
                                       "budget { fraction: 0.3 }"),
                           " } key_bits: 2 value_bits: 2"))};
}

std::unique_ptr<DeviceModel> LoadDevice(const ModelConfig& config,
                                        const WeightSource& weights,
                                        const DeviceModelOptions& options) {
  static ThreadPool threads(2);  // outlives the model
  auto model = LoadCudaModel(config, weights, options, threads);
  EXPECT_OK(model.status());
  return *std::move(model);
}

absl::StatusOr<std::unique_ptr<DeviceSequences>> NewSequences(
    DeviceModel& model, const Storage& storage, int count) {
  return model.NewSequences(storage.Plan(), storage.Recency(),
                            {.num_sequences = count,
                             .max_tokens = kMaxTokens,
                             .max_chunk_tokens = kMaxTokens,
                             .eviction = storage.Eviction()});
}

using Rows = std::vector<std::vector<float>>;

// The rows of chunk i in [i].
absl::StatusOr<Rows> DeviceLogits(DeviceModel& model,
                                  DeviceSequences& sequences,
                                  const std::vector<DeviceChunk>& batch) {
  Rows logits(batch.size());
  const int64_t vocab = model.config().vocab_size;
  KVMIX_RETURN_IF_ERROR(model.Forward(
      sequences, batch, [&](int chunk, int64_t, int64_t rows, const float* x) {
        logits[chunk].insert(logits[chunk].end(), x, x + rows * vocab);
        return absl::OkStatus();
      }));
  return logits;
}

bool IsEmulator() {
  cudaDeviceProp device;
  EXPECT_EQ(cudaGetDeviceProperties(&device, 0), cudaSuccess);
  return std::string(device.name) == "CUDA emulator";
}

int64_t CacheBytesOnDevice(const DeviceModel& model) {
  const auto use = model.MemoryUse();
  EXPECT_OK(use);
  return use->in_use - use->passes;
}

// Three sequences on the CPU and on the device, fed alike.
class Both {
 public:
  Both(const ModelConfig& config, const Storage& storage,
       const DeviceModelOptions& options)
      : storage_(storage),
        weights_(config),
        device_(LoadDevice(config, weights_, options)),
        tokens_(RandomTokens(config, 1000)) {
    auto cpu = Transformer::Load(
        config, weights_, {.num_threads = 1, .compute = options.compute});
    EXPECT_OK(cpu.status());
    cpu_ = *std::move(cpu);
    bytes_before_ = CacheBytesOnDevice(*device_);
    auto sequences = NewSequences(*device_, storage, 3);
    EXPECT_OK(sequences.status());
    sequences_ = *std::move(sequences);
    for (int s = 0; s < 3; ++s) caches_.push_back(NewCache());
  }

  // Tokens of each sequence; 0: it is not in the batch.
  void Pass(const std::vector<int>& lengths, WantLogits logits) {
    std::vector<Chunk> on_cpu;
    std::vector<DeviceChunk> on_device;
    for (int s = 0; s < 3; ++s) {
      if (lengths[s] == 0) continue;
      const auto chunk = absl::MakeConstSpan(tokens_).subspan(at_, lengths[s]);
      at_ += lengths[s];
      on_cpu.push_back({chunk, caches_[s].get(), logits});
      on_device.push_back({s, chunk, logits});
    }
    ASSERT_OK_AND_ASSIGN(const Rows got,
                         DeviceLogits(*device_, *sequences_, on_device));
    const Rows want = testing::Logits(*cpu_, on_cpu);
    ASSERT_EQ(got.size(), want.size());
    for (size_t c = 0; c < want.size(); ++c) {
      ASSERT_EQ(got[c].size(), want[c].size());
      for (size_t i = 0; i < want[c].size(); ++i) {
        const double difference = std::abs(double{got[c][i]} - want[c][i]);
        largest_ = std::max(largest_, difference);
        sum_ += difference;
      }
      count_ += static_cast<int64_t>(want[c].size());
    }
    for (int s = 0; s < 3; ++s)
      EXPECT_EQ(sequences_->num_tokens(s), caches_[s]->num_tokens(0));
  }
  double largest() const { return largest_; }
  double mean() const { return sum_ / static_cast<double>(count_); }
  void Reset(int sequence) {
    sequences_->Reset(sequence);
    caches_[sequence] = NewCache();
  }
  void ExpectTheCpusNamesAndBytes() const {
    EXPECT_THAT(sequences_->WhyOnHost(), HasSubstr(storage_.why));
    EXPECT_EQ(
        sequences_->AttentionKernels(),
        "host: " + AttentionKernels(*caches_[0], AttentionArithmetic::kFloat));
    int64_t packed = 0;
    MemoryLedger sum;
    for (const auto& cache : caches_) sum += cache->ledger();
    EXPECT_EQ(sequences_->ledger().total(), sum.total());
    EXPECT_EQ(sequences_->ledger().key.codes, sum.key.codes);
    EXPECT_EQ(sequences_->ledger().value.packed_tokens,
              sum.value.packed_tokens);
    packed = sum.key.packed_tokens;
    if (storage_.bits < 16) {
      EXPECT_GT(packed, 0);
    }
    if (IsEmulator()) {
      EXPECT_EQ(CacheBytesOnDevice(*device_), bytes_before_);
    }
  }

 private:
  std::unique_ptr<KvCache> NewCache() const {
    auto cache = KvCache::Create(cpu_->cache_shape(), storage_.Plan(),
                                 storage_.Recency(), storage_.Eviction());
    EXPECT_OK(cache.status());
    return *std::move(cache);
  }

  const Storage storage_;
  const RandomWeights weights_;
  std::unique_ptr<Transformer> cpu_;
  const std::unique_ptr<DeviceModel> device_;
  const std::vector<int32_t> tokens_;
  int64_t at_ = 0;
  int64_t bytes_before_ = 0;
  double largest_ = 0, sum_ = 0;  // differences of logits
  int64_t count_ = 0;
  std::unique_ptr<DeviceSequences> sequences_;
  std::vector<std::unique_ptr<KvCache>> caches_;
};

// Of differences of logits, which are about 1 in these models.
struct Tolerance {
  double largest, mean;
};
// Attention is the CPU's own, so what is left are sums of matrix products in
// another order: 2.2e-5 and 1.6e-6 where nothing is rounded.
constexpr Tolerance kNotRounded = {1e-4, 1e-5};
// A key or a value may be rounded to another half, or to another code, which
// all later tokens see. Largest of all cases: 0.15 and 0.0006. Formats of one
// bit more on one side would be told: means of 0.04 to 0.18.
constexpr Tolerance kRounded = {0.5, 0.002};

// Prompts, longer chunks, decode steps and mixtures of them.
void ExpectSameAsCpu(const Storage& storage, const Tolerance& tolerance,
                     const ModelConfig& config = Config(),
                     const DeviceModelOptions& options = {}) {
  Both both(config, storage, options);
  both.Pass({70, 1, 40}, WantLogits::kAll);
  both.Pass({5, 50, 0}, WantLogits::kLast);
  for (int step = 0; step < 3; ++step) both.Pass({1, 1, 1}, WantLogits::kAll);
  both.Pass({1, 0, 35}, WantLogits::kAll);
  both.Reset(1);
  both.Pass({1, 38, 1}, WantLogits::kAll);
  both.Pass({1, 1, 1}, WantLogits::kLast);
  both.ExpectTheCpusNamesAndBytes();
  EXPECT_LE(both.largest(), tolerance.largest) << storage.why;
  EXPECT_LE(both.mean(), tolerance.mean) << storage.why;
}

// In float, which nothing rounds.
Storage Unrounded() {
  return {.why = "full_precision is FLOAT",
          .bits = 16,
          .full_precision = CachePlan::FLOAT};
}

TEST(CudaHostSequencesTest, WhatIsNotRoundedIsTheCpus) {
  ExpectSameAsCpu(Unrounded(), kNotRounded);
  Storage dropping = Unrounded();
  dropping.eviction = WithOptions("snapkv", "SnapKvOptions",
                                  "budget { tokens: 30 step: 4 } window: 8");
  ExpectSameAsCpu(dropping, kNotRounded);
  ModelConfig config = Config();
  config.family = "mistral";
  config.sliding_window = 9;
  ExpectSameAsCpu(Unrounded(), kNotRounded, config);
}

TEST(CudaHostSequencesTest, QuantizersWithoutKernels) {
  ExpectSameAsCpu(Turbo(), kRounded);
  ExpectSameAsCpu(
      {.why = "quantizer \"hadamard\" has no kernels",
       .quantizer = "name: 'hadamard'",
       .recency = WithOptions("residual_window", "ResidualWindowOptions",
                              "tokens: 32")},
      kRounded);
  ExpectSameAsCpu({.why = "quantizer \"codebook\" has no kernels",
                   .quantizer = "name: 'codebook'"},
                  kRounded);
}

TEST(CudaHostSequencesTest, KeysBeforeRope) {
  ExpectSameAsCpu(
      {.why = "quantizer \"pre_rope\" has no kernels",
       .quantizer = "name: 'pre_rope'",
       .recency = WithOptions("window_with_sinks", "WindowWithSinksOptions",
                              "tokens: 5 sink_tokens: 3")},
      kRounded);
}

TEST(CudaHostSequencesTest, TokensPassThroughFormats) {
  ExpectSameAsCpu(
      {.why = "the recency policy stores tokens in formats by age",
       .bits = 2,
       .recency = WithOptions("age_tiers", "AgeTiersOptions",
                              "tokens: 8 tier { bits: 8 tokens: 32 }")},
      kRounded);
}

TEST(CudaHostSequencesTest, TokensAreDemotedOrLeave) {
  ExpectSameAsCpu(Demoting(), kRounded);
  Storage dropping = Turbo();
  dropping.eviction = WithOptions("h2o", "ScoredEvictionOptions",
                                  "budget { tokens: 30 step: 4 }");
  ExpectSameAsCpu(dropping, kRounded);
}

TEST(CudaHostSequencesTest, KvHeadsHaveFormatsOfTheirOwn) {
  ExpectSameAsCpu({.why = "layer 0 keys: KV heads have formats of their own",
                   .bits = 2,
                   .other_head_bits = 5},
                  kRounded);
}

TEST(CudaHostSequencesTest, BFloat16IsTheCpusWithinItsRounding) {
  // Inputs of products round to the other bf16, 2^-8 of them. 0.09 and 0.0004.
  ExpectSameAsCpu(Turbo(), kRounded, Config(),
                  {.compute = ComputeType::kBFloat16});
}

class CudaHostErrorTest : public ::testing::Test {
 protected:
  CudaHostErrorTest() : config_(Config()), weights_(config_) {}

  absl::Status Forward(DeviceModel& model, DeviceSequences& sequences,
                       int sequence, const std::vector<int32_t>& tokens) {
    return DeviceLogits(model, sequences,
                        {{.sequence = sequence, .tokens = tokens}})
        .status();
  }

  const ModelConfig config_;
  RandomWeights weights_;
};

TEST_F(CudaHostErrorTest, WhatKernelsServeStaysOnTheDevice) {
  auto model = LoadDevice(config_, weights_, {});
  ASSERT_OK_AND_ASSIGN(const auto sequences, NewSequences(*model, {}, 1));
  EXPECT_EQ(sequences->WhyOnHost(), "");
  EXPECT_THAT(sequences->AttentionKernels(), HasSubstr("tensor cores"));
}

TEST_F(CudaHostErrorTest, AFailedPassSpoilsItsSequenceUntilReset) {
  // In layer 0, token 7 alone has a first channel, and keys go by it.
  std::vector<float>& embedding = weights_["model.embed_tokens.weight"];
  std::vector<float>& keys = weights_["model.layers.0.self_attn.k_proj.weight"];
  const int64_t C = config_.hidden_size;
  for (size_t i = 0; i < embedding.size(); i += C) embedding[i] = 0;
  for (size_t i = 0; i < keys.size(); i += C) keys[i] = 1e6;
  embedding[7 * C] = 10;
  auto model = LoadDevice(config_, weights_, {});
  ASSERT_OK_AND_ASSIGN(const auto sequences, NewSequences(*model, Turbo(), 2));
  EXPECT_OK(Forward(*model, *sequences, 0, {1, 2, 3}));
  EXPECT_THAT(
      Forward(*model, *sequences, 0, {4, 7}),
      StatusIs(absl::StatusCode::kDataLoss,
               HasSubstr("layer 0 keys: token 1 of the chunk, KV head 0")));
  EXPECT_THAT(Forward(*model, *sequences, 0, {5}),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("sequence 0: a pass over it failed; start it "
                                 "again with Reset")));
  EXPECT_OK(Forward(*model, *sequences, 1, {5}));
  sequences->Reset(0);
  EXPECT_EQ(sequences->num_tokens(0), 0);
  EXPECT_OK(Forward(*model, *sequences, 0, {5}));
  EXPECT_EQ(sequences->num_tokens(0), 1);
}

TEST_F(CudaHostErrorTest, ChunksThatDoNotFit) {
  auto model = LoadDevice(config_, weights_, {});
  ASSERT_OK_AND_ASSIGN(const auto sequences, NewSequences(*model, Turbo(), 1));
  EXPECT_OK(
      Forward(*model, *sequences, 0, RandomTokens(config_, kMaxTokens - 1)));
  EXPECT_THAT(Forward(*model, *sequences, 0, {1, 2}),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("made for max_tokens 160")));
  EXPECT_OK(Forward(*model, *sequences, 0, {1}));
}

TEST_F(CudaHostErrorTest, WhatTheCpuRefusesToo) {
  auto model = LoadDevice(config_, weights_, {});
  Storage storage = Demoting();
  storage.quantizer = "name: 'pre_rope'";
  EXPECT_THAT(
      NewSequences(*model, storage, 1).status(),
      StatusIs(absl::StatusCode::kInvalidArgument,
               HasSubstr("layer 0 keys: quantizer \"pre_rope\" stores keys "
                         "before RoPE and takes a token's place")));
  EXPECT_THAT(
      model
          ->NewSequences(Turbo().Plan(), Turbo().Recency(),
                         {.max_tokens = 0, .eviction = Turbo().Eviction()})
          .status(),
      StatusIs(absl::StatusCode::kInvalidArgument,
               HasSubstr("max_tokens is 0")));
  ModelConfig sliding = config_;
  sliding.family = "mistral";
  sliding.sliding_window = 9;
  EXPECT_THAT(
      NewSequences(*LoadDevice(sliding, weights_, {}), Demoting(), 1).status(),
      StatusIs(absl::StatusCode::kUnimplemented,
               HasSubstr("attends to a sliding window of 9")));
}

}  // namespace
}  // namespace kvmix
