// CudaKvCache: the keys and values of a batch of sequences, packed on a CUDA
// device, and attention over them. The rules are KvCache's (kv_cache.h):
//   [ sink tokens, half | packed blocks, oldest first | window, half ]
// for every sequence, layer, KV head, and for keys and values each. Codes,
// scales and zero points are the CPU's, bit for bit; how they lie is not
// (quant/cuda_layout.h).
//
// A chunk passes the model in this order, for all sequences of it at once:
//   BeginChunk                      counts tokens of all layers, on the host
//   for each layer: Append, Attention, Observe, FinishChunk      kernels alone
//   EndChunk                        eviction, if any, after a decode step
// What was counted travels to the device once, in BeginChunk. The calls of a
// layer of a decode step only launch kernels, so they can be captured into a
// CUDA graph and replayed after every BeginChunk of as many tokens, as long as
// launch_key() stays the same.
//
// All memory is allocated in Create, nothing is ever copied to grow: a sequence
// has room for max_tokens tokens. Unquantized windows have the most room that
// the recency policy can ask for; a chunk's own keys and values wait in a
// buffer that all layers share, so a long prompt never fills the windows.
//
// With an eviction policy, streams have memory for the tokens that they hold,
// KV head by KV head, and for a few more: what a token took is freed when it
// leaves. The policy itself runs on the host (cuda_eviction.cc).
//
// Shapes: L = layers, G = KV heads, H = query heads, D = head_dim, R = tokens
// of a chunk, those of all its sequences one after another.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention/cuda_attention_params.h"
#include "attention/kv_cache.h"
#include "attention/memory_ledger.h"
#include "kvmix/cache_plan.pb.h"
#include "kvmix/eviction/eviction_policy.h"
#include "kvmix/recency/recency_policy.h"

namespace kvmix {

struct CudaCacheOptions {
  int num_sequences = 1;
  int64_t max_tokens = 0;        // of each sequence
  int64_t max_chunk_tokens = 1;  // R at most; at least num_sequences
  int num_heads = 0;             // H, a multiple of G
  // Null: all tokens stay.
  std::shared_ptr<const EvictionPolicy> eviction = nullptr;
};

// The tokens of one sequence in a chunk.
struct SequenceChunk {
  int sequence = 0;
  int64_t num_tokens = 0;
};

// Error: a chunk for which a cache made with `options`, whose sequences hold
// `tokens`, has no room.
absl::Status CheckChunk(const CudaCacheOptions& options,
                        absl::Span<const int64_t> tokens,
                        absl::Span<const SequenceChunk> chunk);

struct CudaAttentionOptions {
  float scale = 0;             // usually 1 / sqrt(D)
  int64_t sliding_window = 0;  // 0: none
};

class CudaKvCache {
 public:
  // Errors: Unimplemented, of otherwise valid options, for what no kernels
  // serve: a format, a policy, KV heads in formats of their own;
  // ResourceExhausted, with the bytes, if the device has no room.
  static absl::StatusOr<std::unique_ptr<CudaKvCache>> Create(
      const CacheShape& shape, const CachePlan& plan,
      std::shared_ptr<const RecencyPolicy> recency,
      const CudaCacheOptions& options);
  ~CudaKvCache();

  const CacheShape& shape() const;
  const CudaCacheOptions& options() const;
  // Tokens of a sequence, those of an open chunk and those that have left
  // included.
  int64_t num_tokens(int sequence) const;
  // Forgets a sequence's tokens. Work that reads them must be done, or be
  // earlier in the stream of the next chunk.
  void Reset(int sequence);

  // Every sequence at most once. Errors: no room, or what the recency policy
  // says. The copy to the device is ordered by `stream`, which must be that of
  // the calls below.
  absl::Status BeginChunk(absl::Span<const SequenceChunk> chunk,
                          cudaStream_t stream);
  // keys, values: [R, G, D], keys after RoPE. They are rounded to half. A
  // number beyond half's range becomes an infinity and is told by
  // CheckNumbers.
  absl::Status Append(int layer, CudaRows keys, CudaRows values,
                      cudaStream_t stream);
  // queries, out: [R, H, D].
  absl::Status Attention(int layer, CudaRows queries, CudaMutableRows out,
                         const CudaAttentionOptions& options,
                         cudaStream_t stream);
  // Shows the chunk's queries, [R, H, D] float, to an eviction policy that goes
  // by them; nothing happens otherwise. `scale` is that of attention.
  absl::Status Observe(int layer, CudaRows queries, float scale,
                       cudaStream_t stream);
  // With an eviction policy, a chunk of more than one token of a sequence waits
  // here for the policy. Errors: of Create, and an answer that breaks the
  // policy's contract.
  absl::Status FinishChunk(int layer, cudaStream_t stream);
  // After the last layer. Errors: as FinishChunk's.
  absl::Status EndChunk(cudaStream_t stream);

  // Equal keys: launches captured for the one chunk serve the other.
  uint64_t launch_key() const;
  // Waits for `stream`. DataLoss if a key or a value did not fit half since
  // the last call.
  absl::Status CheckNumbers(cudaStream_t stream);

  // Device bytes by cause; total() is what is allocated. bookkeeping: the
  // buffers of a chunk, the counts, and the workspace of attention and of
  // eviction.
  MemoryLedger ledger() const;
  // The kernel that a layer's decode step runs through, and the one of all
  // longer chunks, for records.
  std::string DecodeKernelName(int layer) const;
  static std::string PrefillKernelName();

  // For tests: what a stream holds, as stored. Waits for the device.
  struct Stored {
    int64_t sinks = 0, packed = 0, window = 0;  // tokens
    std::vector<float> x;                       // [N, D] numbers read back
    // Of packed tokens alone, [packed, D]: codes, and the bits of half.
    std::vector<uint8_t> codes;
    std::vector<uint16_t> scales, zeros;
  };
  absl::StatusOr<Stored> Read(int layer, int sequence, int kv_head,
                              Side side) const;

 private:
  struct State;
  explicit CudaKvCache(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace kvmix
