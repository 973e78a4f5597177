#include "models/test_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention/test_policies.h"
#include "kvmix/base/random.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix::testing {

ModelConfig SmallConfig() {
  ModelConfig config;
  config.family = "llama";
  config.num_layers = 3;
  config.hidden_size = 48;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.intermediate_size = 72;
  config.vocab_size = 80;
  config.rms_norm_eps = 1e-5f;
  config.max_position = 256;
  return config;
}

RandomWeights::RandomWeights(const ModelConfig& config, uint64_t seed) {
  uint64_t stream = 0;
  for (const ExpectedTensor& tensor : ExpectedTensors(config)) {
    const auto size = CountElements(tensor.shape);
    EXPECT_OK(size.status());
    std::vector<float>& data = data_[tensor.name];
    data.resize(*size);
    CounterRandom random(seed, stream++);
    const bool is_matrix = tensor.shape.size() == 2;
    const double scale =
        is_matrix ? 1.5 / std::sqrt(static_cast<double>(tensor.shape[1])) : 0.3;
    const double mean =
        tensor.name.find("norm") != std::string::npos ? 1.0 : 0.0;
    for (float& x : data)
      x = static_cast<float>(mean + scale * random.Normal());
    EXPECT_OK(AddTensor({.name = tensor.name,
                         .shape = tensor.shape,
                         .type = ElementType::kF32}));
  }
}

void RandomWeights::CopyRows(size_t index, int64_t first_row, int64_t num_rows,
                             uint8_t* out) const {
  const TensorInfo& info = tensors()[index];
  const int64_t width = info.shape.back();
  std::memcpy(out, data_.at(info.name).data() + first_row * width,
              num_rows * width * sizeof(float));
}

std::unique_ptr<Transformer> Load(const ModelConfig& config,
                                  const WeightSource& weights,
                                  int num_threads) {
  auto model = Transformer::Load(config, weights, {.num_threads = num_threads});
  EXPECT_OK(model.status());
  return *std::move(model);
}

std::vector<int32_t> RandomTokens(const ModelConfig& config, int64_t count,
                                  uint64_t seed) {
  CounterRandom random(seed, 0);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens)
    token = static_cast<int32_t>(random.Below(config.vocab_size));
  return tokens;
}

std::unique_ptr<KvCache> FullPrecisionCache(const Transformer& model,
                                            std::pmr::memory_resource* memory) {
  CachePlan plan;
  for (int i = 0; i < model.config().num_layers; ++i) {
    LayerPlan& layer = *plan.add_layer();
    layer.mutable_key()->set_bits(16);
    layer.mutable_value()->set_bits(16);
  }
  auto cache = KvCache::Create(
      model.cache_shape(), plan,
      std::make_shared<KeepRecent>(KeepRecentOptions{.ratio = 1}),
      std::make_shared<KeepAll>(), memory);
  EXPECT_OK(cache.status());
  return *std::move(cache);
}

std::vector<std::vector<float>> Logits(Transformer& model,
                                       const std::vector<Chunk>& batch) {
  std::vector<std::vector<float>> logits(batch.size());
  const int64_t vocab = model.config().vocab_size;
  EXPECT_OK(model.Forward(
      batch, [&](int chunk, int64_t, int64_t rows, const float* x) {
        logits[chunk].insert(logits[chunk].end(), x, x + rows * vocab);
        return absl::OkStatus();
      }));
  return logits;
}

}  // namespace kvmix::testing
