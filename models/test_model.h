// For tests: small random models, caches in full precision, and logits gathered
// from a pass.
#pragma once

#include <map>
#include <memory>
#include <memory_resource>
#include <string>
#include <vector>

#include "models/transformer.h"

namespace kvmix::testing {

// 3 layers, 4 query and 2 KV heads of 16 channels, hidden size 48, vocabulary
// 80, context 256.
ModelConfig SmallConfig();

// Random weights of a model's shape, changeable by name.
class RandomWeights final : public WeightSource {
 public:
  explicit RandomWeights(const ModelConfig& config, uint64_t seed = 1);
  std::vector<float>& operator[](const std::string& name) {
    return data_.at(name);
  }

 private:
  void CopyRows(size_t index, int64_t first_row, int64_t num_rows,
                uint8_t* out) const override;
  std::map<std::string, std::vector<float>> data_;
};

std::unique_ptr<Transformer> Load(const ModelConfig& config,
                                  const WeightSource& weights,
                                  int num_threads = 2);

std::vector<int32_t> RandomTokens(const ModelConfig& config, int64_t count,
                                  uint64_t seed = 1);

// A cache that quantizes nothing.
std::unique_ptr<KvCache> FullPrecisionCache(
    const Transformer& model,
    std::pmr::memory_resource* memory = std::pmr::get_default_resource());

// Runs one pass; [i] holds the rows of chunk i.
std::vector<std::vector<float>> Logits(Transformer& model,
                                       const std::vector<Chunk>& batch);

}  // namespace kvmix::testing
