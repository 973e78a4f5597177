// The inside of CudaKvCache, for its own source files: cuda_kv_cache.cc, and
// cuda_eviction.cc, which takes tokens out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "attention/cuda_compact.h"
#include "attention/cuda_kv_cache.h"
#include "attention/cuda_observe.h"
#include "kvmix/base/device_memory.h"
#include "quant/quantizer.h"

namespace kvmix {

struct CudaKvCache::State {
  static constexpr int kTile = 32;  // tokens that attention reads at a time

  // Streams whose tokens move alike: of all layers with such a format or, if
  // tokens are evicted, of one layer.
  struct Kind {
    Side side;
    int bits, granularity;
    int layer;       // -1: of all
    int64_t window;  // room, tokens, for what is not packed
  };
  struct Layer {
    CudaLayer params;
    int key_kind, value_kind;
    const CudaSide& side(Side s) const {
      return s == Side::kKey ? params.key : params.value;
    }
    int kind(Side s) const { return s == Side::kKey ? key_kind : value_kind; }
  };
  // The streams of one layer of one sequence, if tokens are evicted: memory for
  // those that are there, and a few more.
  struct Evicting {
    DeviceMemory memory;
    std::vector<int64_t> room;                    // [G] tokens, sinks included
    std::vector<std::vector<int64_t>> positions;  // [G][stored], in the text
    bool drops = false, compacts = false;         // at the end of the chunk
  };
  struct Chunk {
    std::vector<SequenceChunk> parts;
    int num_rows = 0, max_tokens = 0;
    bool any_single = false;
    int64_t longest = 0;  // tokens of a stream
    int num_items() const { return static_cast<int>(parts.size()); }
    bool single_tokens() const { return max_tokens == 1; }
  };

  State(const CacheShape& shape, const CudaCacheOptions& options)
      : shape(shape), options(options) {}
  ~State() {
    if (staged != nullptr) cudaEventDestroy(staged);
  }

  absl::Status AddFormats(const CachePlan& plan);
  absl::StatusOr<int> KindOf(const CudaFormat& format, Side side, int layer);
  void LayOut(DeviceArena& arena);
  absl::Status Allocate();
  absl::StatusOr<CudaCounts> CountsAfter(int kind, int sequence, int head,
                                         int64_t new_tokens) const;
  int Splits(int64_t blocks) const;
  CudaAttentionParams AttentionParams(int layer) const;

  bool evicts() const {
    return options.eviction != nullptr && options.eviction->evicts();
  }
  int group() const { return options.num_heads / shape.num_kv_heads; }
  // KV heads whose tokens are counted apart.
  int counted_heads() const { return evicts() ? shape.num_kv_heads : 1; }
  int counted(int head) const { return evicts() ? head : 0; }
  int64_t counts_of_kind() const {
    return int64_t{options.num_sequences} * counted_heads();
  }
  int64_t StagingBytes() const {
    return options.num_sequences * static_cast<int64_t>(sizeof(CudaItem)) +
           static_cast<int64_t>(kinds.size() * sizeof(CudaCounts)) *
               counts_of_kind();
  }
  int64_t max_sinks() const {
    return std::min(recency->sink_tokens(), options.max_tokens);
  }
  EvictionSignals signals() const {
    return evicts() ? options.eviction->signals() : EvictionSignals();
  }
  // The chunk's longest stream, rounded up so that few lengths change a launch.
  int64_t RoundedLongest() const {
    int64_t tokens = kTile;
    while (tokens < chunk.longest) tokens *= 2;
    return tokens;
  }
  int64_t max_positions() const { return options.max_tokens - max_sinks(); }

  // Tokens in the streams of a KV head.
  int64_t Stored(int layer, int sequence, int head) const {
    return evicts() ? static_cast<int64_t>(
                          at(layer, sequence).positions[head].size())
                    : tokens[sequence];
  }
  int64_t Room(int layer, int sequence, int head) const {
    return evicts() ? at(layer, sequence).room[head] : options.max_tokens;
  }
  // Of a stream with room for so many tokens.
  int64_t WindowRows(int kind, int64_t room) const;
  int64_t Blocks(const CudaSide& side, int64_t room) const;
  int64_t StreamBytes(const CudaSide& side, int kind, int64_t room) const;
  // Places [2][G], keys first, of streams with room for room[h] tokens.
  std::vector<CudaPlace> LayOutStreams(int layer,
                                       const std::vector<int64_t>& room,
                                       DeviceArena& arena) const;
  int64_t PlaceIndex(int layer, Side side, int sequence, int head) const {
    const int64_t array = 2 * layer + (side == Side::kKey ? 0 : 1);
    return (array * options.num_sequences + sequence) * shape.num_kv_heads +
           head;
  }
  void SetPlaces(int layer, int sequence, const std::vector<CudaPlace>& both);

  // ---- Eviction (cuda_eviction.cc) ----

  Evicting& at(int layer, int sequence) {
    return evicting[static_cast<size_t>(layer) * options.num_sequences +
                    sequence];
  }
  const Evicting& at(int layer, int sequence) const {
    return const_cast<State*>(this)->at(layer, sequence);
  }
  // Counts the new tokens of a sequence in all layers and says, for each,
  // whether it will be compacted.
  absl::Status BeginEvicting(const SequenceChunk& part, cudaStream_t stream);
  // Asks the policy about every sequence of the chunk and takes tokens out.
  absl::Status FinishEvicting(int layer, cudaStream_t stream);
  void ForgetEvicting(int sequence);
  // Of all streams' memory and what eviction works with.
  int64_t EvictingBytes() const;

  struct Shown;
  EvictionState StateOf(int layer, int sequence) const;
  absl::Status Show(int layer, int item, Shown& shown, cudaStream_t stream);
  // `size` floats that `launch` writes to device memory.
  template <typename Launch>
  absl::StatusOr<std::vector<float>> ReadBack(int64_t size,
                                              const Launch& launch,
                                              cudaStream_t stream);
  absl::Status ShowScores(int layer, int item, Shown& shown,
                          cudaStream_t stream);
  absl::Status Observe(int layer, CudaRows queries, float scale,
                       cudaStream_t stream);
  float* RecentQueries(int layer) const {
    return recent_queries + layer * options.num_sequences *
                                signals().query_window * options.num_heads *
                                shape.head_dim;
  }
  const float* Received(int layer, int item, int head) const;
  absl::StatusOr<std::vector<TokenList>> Dropped(int layer, int item,
                                                 cudaStream_t stream);
  absl::StatusOr<CudaCompaction> CompactionOf(int layer, Side side, int item,
                                              int head,
                                              const TokenList& dropped) const;
  absl::Status Compact(int layer, int item,
                       const std::vector<TokenList>& dropped,
                       cudaStream_t stream);
  absl::StatusOr<DeviceMemory> NewStreams(int layer,
                                          const std::vector<int64_t>& room,
                                          cudaStream_t stream);
  absl::Status UploadPlaces(int layer, int sequence, cudaStream_t stream);

  const CacheShape shape;
  const CudaCacheOptions options;
  std::shared_ptr<const RecencyPolicy> recency;
  int num_sms = 0;

  std::vector<Kind> kinds;
  std::vector<Layer> layers;
  DeviceMemory memory;
  CudaItem* items = nullptr;            // [sequences]
  CudaCounts* device_counts = nullptr;  // [kinds][sequences][counted_heads]
  CudaPlace* device_places = nullptr;   // [layers][2][sequences][G]
  int* unfit = nullptr;
  float* partials = nullptr;
  int64_t partial_rows = 0;

  PinnedMemory staging;  // items and counts
  cudaEvent_t staged = nullptr;

  std::vector<CudaPlace> places;  // as on the device
  std::vector<int64_t> tokens;    // [sequences], seen
  std::vector<std::vector<int64_t>>
      packed;  // [kinds][sequences][counted_heads]
  Chunk chunk;

  // Empty if all tokens stay. [layers][sequences]
  std::vector<Evicting> evicting;
  DeviceMemory spare;     // streams' memory of before, for the next streams
  DeviceMemory readable;  // tokens for the policy
  int* kept = nullptr;    // [G][max_tokens]
  float* recent_queries = nullptr;  // [layers][sequences][query_window][H][D]
  float* score_partials = nullptr;  // CudaObservation's
  float* received = nullptr;        // [sequences][G][max_tokens]
  float query_scale = 0;
  CudaCompaction* compactions = nullptr;  // [2][G]
};

}  // namespace kvmix
