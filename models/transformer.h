// Transformer: a decoder-only language model of the Llama kind (Llama, Mistral,
// Qwen2, Qwen3), run on the CPU.
//
// A forward pass takes a ragged batch: chunk i continues the sequence that
// caches[i] holds. There is no padding, so neither the batch nor its other
// members change a sequence's result; nor does the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention/attention.h"
#include "attention/kv_cache.h"
#include "kvmix/base/thread_pool.h"
#include "models/linear.h"
#include "models/model_config.h"
#include "models/weight_source.h"

namespace kvmix {

struct RuntimeOptions {
  int num_threads = 0;  // 0: all
  ComputeType compute = ComputeType::kFloat32;
  AttentionArithmetic attention = AttentionArithmetic::kFloat;
};

enum class WantLogits { kNone, kLast, kAll };

struct Chunk {
  absl::Span<const int32_t> tokens;  // at least one
  KvCache* cache = nullptr;
  WantLogits logits = WantLogits::kAll;
};

// Shown rows of logits, [num_rows, vocab_size], of chunk `chunk` in ascending
// order of tokens: row r belongs to the chunk's token first_token + r. A non-ok
// answer ends the pass.
using LogitsConsumer = std::function<absl::Status(
    int chunk, int64_t first_token, int64_t num_rows, const float* logits)>;

class Transformer {
 public:
  static absl::StatusOr<std::unique_ptr<Transformer>> Load(
      const ModelConfig& config, const WeightSource& weights,
      const RuntimeOptions& options);
  ~Transformer();

  const ModelConfig& config() const;
  CacheShape cache_shape() const;
  int64_t weight_bytes() const;
  ThreadPool& threads();

  // Errors: a token outside the vocabulary, a sequence longer than
  // config().max_position, a cache of another shape, or one that a failed pass
  // left unfinished.
  absl::Status Forward(absl::Span<const Chunk> batch,
                       const LogitsConsumer& consume);

  struct Weights;  // layout for the forward and backward passes,
                   // transformer_weights.h
  const Weights& weights() const;

 private:
  struct State;
  explicit Transformer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace kvmix
