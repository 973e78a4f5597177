// Causal attention of a chunk's queries over a KvCache that already holds the
// chunk's keys and values.
//
// The last T tokens of a head are the chunk's own: query t sees tokens [0, n
// - T + t], n = tokens of the head, and of those only the last sliding_window
// if that is not 0. GQA: query head h reads KV head h / (H / G), without
// copies.
#pragma once

#include <cstdint>
#include <string>

#include "absl/types/span.h"
#include "attention/attention_arithmetic.h"
#include "attention/kv_cache.h"
#include "kvmix/base/thread_pool.h"

namespace kvmix {

struct AttentionOptions {
  int num_heads = 0;           // H
  float scale = 0;             // usually 1 / sqrt(D)
  int64_t sliding_window = 0;  // 0: none
  AttentionArithmetic arithmetic = AttentionArithmetic::kFloat;
};

// One sequence of a batch. queries, out: [T, H, D] float.
struct AttentionItem {
  const KvCache* cache = nullptr;
  int64_t num_tokens = 0;  // T
  const float* queries = nullptr;
  float* out = nullptr;
};

// Preconditions: layer has an open chunk of num_tokens in every cache (between
// Append and FinishChunk), num_heads is a multiple of its KV heads, and all
// caches have the same head_dim; with a sliding window they keep all tokens.
// Results do not depend on the number of threads, nor on what else is in the
// batch.
void Attention(int layer, absl::Span<const AttentionItem> batch,
               const AttentionOptions& options, ThreadPool& threads);

// What computes decode attention over this cache, as PackedKernelName says, or
// "half", "bfloat16" or "float" for what is not packed; several, if layers or
// keys and values differ: "float + int8".
std::string AttentionKernels(const KvCache& cache,
                             AttentionArithmetic arithmetic);

}  // namespace kvmix
