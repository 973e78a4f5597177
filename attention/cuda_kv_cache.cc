#include "attention/cuda_kv_cache.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/cuda_attention.h"
#include "attention/cuda_store.h"
#include "attention/recency_step.h"
#include "kvmix/base/check.h"
#include "kvmix/base/device_memory.h"
#include "kvmix/base/half.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"
#include "quant/bit_packing.h"
#include "quant/cuda_layout.h"
#include "quant/quantizer.h"

namespace kvmix {
namespace {

constexpr int kTile = 32;         // tokens that attention reads at a time
constexpr int kTilesOfSplit = 8;  // at least, of a range of the cache
constexpr int kBlocksOfSm = 3;    // blocks of threads at a time, about
constexpr int kRowsOfBlock = 64;  // query rows, at most
constexpr int64_t kMaxTokens = int64_t{1} << 30;

int64_t RoundUp(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}
int64_t CeilDiv(int64_t n, int64_t d) { return (n + d - 1) / d; }

std::string Place(int layer, Side side) {
  return absl::StrCat("layer ", layer, " ", SideName(side));
}

absl::Status Validate(const CacheShape& shape, const CachePlan& plan,
                      const RecencyPolicy& recency,
                      const CudaCacheOptions& options) {
  KVMIX_RETURN_IF_ERROR(
      ValidateIsPositive(shape.num_layers, "cache shape num_layers"));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsPositive(shape.num_kv_heads, "cache shape num_kv_heads"));
  if (shape.head_dim < 8 || shape.head_dim % 8 != 0)
    return absl::InvalidArgumentError(
        absl::StrCat("cache shape head_dim is ", shape.head_dim,
                     " but must be a multiple of 8"));
  if (shape.head_dim > kCudaMaxTiledHeadDim)
    return absl::UnimplementedError(absl::StrCat(
        "head_dim is ", shape.head_dim, " but kernels on CUDA take at most ",
        kCudaMaxTiledHeadDim, "; use device: CPU"));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsNonNegative(recency.sink_tokens(), "sink_tokens"));
  if (plan.layer_size() != shape.num_layers)
    return absl::InvalidArgumentError(
        absl::StrCat("the cache plan has ", plan.layer_size(),
                     " layers but the model has ", shape.num_layers));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsPositive(options.num_sequences, "num_sequences"));
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(options.max_tokens, int64_t{1},
                                          kMaxTokens, "max_tokens"));
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(
      options.max_chunk_tokens, int64_t{options.num_sequences},
      options.max_tokens * options.num_sequences, "max_chunk_tokens"));
  return ValidateDivides(shape.num_kv_heads, options.num_heads,
                         "cache shape num_kv_heads", "num_heads");
}

CudaFormat FragmentFormat(const QuantFormat& format, Side side, int head_dim) {
  const bool keys = side == Side::kKey;
  const int units = head_dim / cuda_layout::kUnit;
  const int tokens = keys ? format.group_size() : cuda_layout::kUnit;
  const int codes = tokens / cuda_layout::kUnit * 4 *
                    cuda_layout::CodeWords(format.bits(), units);
  const int scales =
      keys ? 2 * head_dim
           : 2 * cuda_layout::kUnit * (head_dim / format.group_size());
  CudaFormat f;
  f.layout = CudaLayout::kFragment;
  f.block_tokens = tokens;
  f.scales_offset = codes;
  f.zeros_offset = codes + scales;
  f.block_bytes = codes + 2 * scales;
  return f;
}

CudaFormat StringFormat(const QuantFormat& format, const BlockCodec& codec) {
  const BlockBytes bytes = codec.bytes();
  CudaFormat f;
  f.layout = CudaLayout::kString;
  f.eleven = format.packing() != QuantFormat::DENSE;
  if (format.packing() == QuantFormat::KVMIX_3BIT_11_RESCALED)
    f.last_scale = 7.0f / 3.0f;
  f.words = f.eleven ? 1 : PackedWords(format.group_size(), format.bits());
  f.block_tokens = codec.block_tokens();
  f.scales_offset = static_cast<int>(bytes.codes);
  f.zeros_offset = static_cast<int>(bytes.codes + bytes.scales);
  f.block_bytes = static_cast<int>(RoundUp(bytes.total(), 16));
  return f;
}

absl::StatusOr<CudaFormat> FormatOf(const QuantFormat& format, Side side,
                                    int head_dim) {
  if (format.bits() == 16) return CudaFormat();
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<BlockCodec> codec,
                         MakeBlockCodec(format, side, head_dim));
  if (format.quantizer() != "group_affine")
    return absl::UnimplementedError(absl::StrCat(
        "quantizer \"", format.quantizer(),
        "\" has no kernels on CUDA; use \"group_affine\", or device: CPU"));
  const bool own_axis =
      (format.axis() == QuantFormat::PER_CHANNEL) == (side == Side::kKey);
  const bool fragments = own_axis && format.packing() == QuantFormat::DENSE &&
                         format.group_size() % cuda_layout::kUnit == 0 &&
                         head_dim % cuda_layout::kUnit == 0;
  CudaFormat f = fragments ? FragmentFormat(format, side, head_dim)
                           : StringFormat(format, *codec);
  f.bits = format.bits();
  f.group = format.group_size();
  f.per_channel = format.axis() == QuantFormat::PER_CHANNEL;
  return f;
}

int GranularityOf(const CudaFormat& format) {
  return format.per_channel ? format.group : 1;
}

// The most unquantized tokens that a window keeps between chunks, and those of
// a chunk of one token before it packs. Windows reach every size that chunks
// can make of a size that they reach; a policy that looks at packed tokens
// keeps most when there are none, or as many as fit.
int64_t WindowTokens(const RecencyPolicy& recency, WindowState state,
                     int64_t max_tokens, int64_t max_chunk) {
  int64_t kept = 0, seen = 0;
  for (int64_t reach = std::min(max_chunk, max_tokens); seen < reach;
       reach = std::min(kept + max_chunk, max_tokens)) {
    for (; seen < reach; ++seen) {
      state.window_tokens = seen + 1;
      for (const int64_t packed : {int64_t{0}, max_tokens - seen - 1}) {
        state.packed_tokens = packed;
        kept = std::max(kept,
                        state.window_tokens - recency.TokensToQuantize(state));
      }
    }
  }
  return std::min(kept + 1, max_tokens);
}

// Streams whose tokens move alike.
using CountsKey = std::tuple<Side, int, int>;  // bits, granularity

}  // namespace

struct CudaKvCache::State {
  struct Layer {
    CudaLayer params;
    int key_counts, value_counts;  // index of their counts
  };
  struct Chunk {
    int num_items = 0, num_rows = 0, max_tokens = 0;
    bool any_single = false;
    int64_t longest = 0;  // tokens of a sequence
  };

  State(const CacheShape& shape, const CudaCacheOptions& options)
      : shape(shape), options(options) {}
  ~State() {
    if (staged != nullptr) cudaEventDestroy(staged);
  }

  absl::Status AddFormats(const CachePlan& plan);
  absl::StatusOr<int> CountsOf(const CudaFormat& format, Side side);
  void LayOut(DeviceArena& arena);
  absl::Status Allocate();
  absl::Status CheckChunk(absl::Span<const SequenceChunk> chunk) const;
  absl::StatusOr<CudaCounts> CountsAfter(int index, int sequence,
                                         int64_t tokens) const;
  int Splits(int64_t blocks, int64_t tokens) const;
  CudaAttentionParams AttentionParams(int layer) const;
  int group() const { return options.num_heads / shape.num_kv_heads; }
  bool single_tokens() const { return chunk.max_tokens == 1; }
  int64_t StagingBytes() const {
    return options.num_sequences *
           static_cast<int64_t>(sizeof(CudaItem) +
                                counts.size() * sizeof(CudaCounts));
  }
  int64_t max_positions(int64_t sinks) const {
    return std::max<int64_t>(options.max_tokens - sinks, 0);
  }

  const CacheShape shape;
  const CudaCacheOptions options;
  std::shared_ptr<const RecencyPolicy> recency;
  int num_sms = 0;

  // counts[i]: of streams of this kind; windows[i]: their room.
  std::vector<CountsKey> counts;
  std::vector<int64_t> windows;
  std::vector<Layer> layers;
  DeviceMemory memory;
  CudaItem* items = nullptr;            // [sequences]
  CudaCounts* device_counts = nullptr;  // [counts][sequences]
  int* unfit = nullptr;
  float* partials = nullptr;
  int64_t partial_rows = 0;

  PinnedMemory staging;  // items and counts
  cudaEvent_t staged = nullptr;

  std::vector<int64_t> tokens;               // [sequences]
  std::vector<std::vector<int64_t>> packed;  // [counts][sequences]
  Chunk chunk;
};

absl::StatusOr<int> CudaKvCache::State::CountsOf(const CudaFormat& format,
                                                 Side side) {
  const CountsKey key{side, format.bits, GranularityOf(format)};
  const auto found = std::find(counts.begin(), counts.end(), key);
  if (found != counts.end()) return static_cast<int>(found - counts.begin());
  int64_t window = max_positions(recency->sink_tokens());
  if (format.layout != CudaLayout::kNone) {
    const WindowState state{.side = side,
                            .bits = format.bits,
                            .granularity = GranularityOf(format)};
    KVMIX_RETURN_IF_ERROR(recency->Validate(state));
    window = WindowTokens(*recency, state, window, options.max_chunk_tokens);
  }
  counts.push_back(key);
  windows.push_back(RoundUp(std::max<int64_t>(window, 1), kTile));
  return static_cast<int>(counts.size()) - 1;
}

absl::Status CudaKvCache::State::AddFormats(const CachePlan& plan) {
  for (int i = 0; i < shape.num_layers; ++i) {
    Layer& layer = layers.emplace_back();
    for (Side side : {Side::kKey, Side::kValue}) {
      const bool keys = side == Side::kKey;
      CudaSide& params = keys ? layer.params.key : layer.params.value;
      const QuantFormat& format =
          keys ? plan.layer(i).key() : plan.layer(i).value();
      KVMIX_ASSIGN_OR_RETURN(const std::vector<AgeTier> tiers,
                             recency->Tiers(side, shape.head_dim));
      if (!tiers.empty())
        return absl::UnimplementedError(
            "the recency policy stores tokens by age, for which there are no "
            "kernels on CUDA; use another one, or device: CPU");
      absl::StatusOr<CudaFormat> own = FormatOf(format, side, shape.head_dim);
      if (!own.ok()) return AddContext(own.status(), Place(i, side));
      params.format = *own;
      params.keys = keys;
      absl::StatusOr<int> index = CountsOf(*own, side);
      if (!index.ok()) return AddContext(index.status(), Place(i, side));
      (keys ? layer.key_counts : layer.value_counts) = *index;
    }
  }
  return absl::OkStatus();
}

void CudaKvCache::State::LayOut(DeviceArena& arena) {
  const int64_t streams = int64_t{options.num_sequences} * shape.num_kv_heads;
  const int64_t sinks = std::min(recency->sink_tokens(), options.max_tokens);
  const int64_t row = shape.head_dim;
  const int64_t chunk = options.max_chunk_tokens * shape.num_kv_heads * row;
  items = arena.Take<CudaItem>(options.num_sequences);
  device_counts = arena.Take<CudaCounts>(static_cast<int64_t>(counts.size()) *
                                         options.num_sequences);
  unfit = arena.Take<int>(1);
  const int64_t most_splits =
      CeilDiv(CeilDiv(options.max_tokens, kTile) + 2, kTilesOfSplit);
  partial_rows = std::min<int64_t>(
      int64_t{kRowsOfBlock} * kBlocksOfSm * num_sms,
      options.max_chunk_tokens * options.num_heads * most_splits);
  partials = arena.Take<float>(partial_rows * (shape.head_dim + 2));
  uint16_t* const chunk_keys = arena.Take<uint16_t>(chunk);
  uint16_t* const chunk_values = arena.Take<uint16_t>(chunk);
  for (Layer& layer : layers) {
    layer.params.items = items;
    layer.params.num_kv_heads = shape.num_kv_heads;
    layer.params.head_dim = shape.head_dim;
    layer.params.max_sinks = static_cast<int>(sinks);
    layer.params.flush_before_attention = QuantizesBeforeAttention(*recency, 1);
    layer.params.unfit = unfit;
    for (CudaSide* side : {&layer.params.key, &layer.params.value}) {
      const int index = side->keys ? layer.key_counts : layer.value_counts;
      const CudaFormat& format = side->format;
      side->counts = device_counts + index * options.num_sequences;
      side->chunk = side->keys ? chunk_keys : chunk_values;
      side->window_tokens = static_cast<int>(windows[index]);
      side->window = arena.Take<uint16_t>(streams * windows[index] * row);
      side->sinks = arena.Take<uint16_t>(streams * sinks * row);
      if (format.layout == CudaLayout::kNone) continue;
      side->max_blocks =
          static_cast<int>(CeilDiv(max_positions(sinks), format.block_tokens));
      side->blocks =
          arena.Take<uint8_t>(streams * side->max_blocks * format.block_bytes);
    }
  }
}

absl::Status CudaKvCache::State::Allocate() {
  KVMIX_ASSIGN_OR_RETURN(
      memory,
      DeviceMemory::AllocateFor(
          [this](DeviceArena& arena) { LayOut(arena); },
          absl::StrCat("the KV cache of ", options.num_sequences,
                       " sequences of ", options.max_tokens, " tokens")));
  const int fits = 0;
  KVMIX_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpy(unfit, &fits, sizeof(fits), cudaMemcpyHostToDevice),
                 "clear a flag of the KV cache"));
  KVMIX_RETURN_IF_ERROR(staging.Reserve(StagingBytes(), "the KV cache"));
  return CudaStatus(cudaEventCreate(&staged),
                    "create an event for the KV cache");
}

// Ranges of the cache for `blocks` blocks of threads without: what fills the
// device about once.
int CudaKvCache::State::Splits(int64_t blocks, int64_t longest) const {
  int64_t tiles = 1;  // rounded up, so that few lengths change a launch
  while (tiles * kTile < longest) tiles *= 2;
  const int64_t useful = CeilDiv(tiles, kTilesOfSplit);
  const int64_t wanted = int64_t{kBlocksOfSm} * num_sms / blocks;
  const int64_t room =
      partial_rows / (int64_t{chunk.num_rows} * options.num_heads);
  return static_cast<int>(
      std::max<int64_t>(1, std::min({useful, wanted, room})));
}

CudaKvCache::CudaKvCache(std::unique_ptr<State> state)
    : state_(std::move(state)) {}
CudaKvCache::~CudaKvCache() = default;

namespace {

absl::StatusOr<int> NumSms() {
  int device = 0, sms = 0;
  KVMIX_RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device), "find the device"));
  KVMIX_RETURN_IF_ERROR(CudaStatus(
      cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device),
      "ask the device for its multiprocessors"));
  return sms;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaKvCache>> CudaKvCache::Create(
    const CacheShape& shape, const CachePlan& plan,
    std::shared_ptr<const RecencyPolicy> recency,
    const CudaCacheOptions& options) {
  KVMIX_CHECK(recency != nullptr);
  KVMIX_RETURN_IF_ERROR(Validate(shape, plan, *recency, options));
  auto state = std::make_unique<State>(shape, options);
  state->recency = std::move(recency);
  KVMIX_ASSIGN_OR_RETURN(state->num_sms, NumSms());
  KVMIX_RETURN_IF_ERROR(state->AddFormats(plan));
  KVMIX_RETURN_IF_ERROR(state->Allocate());
  state->tokens.assign(options.num_sequences, 0);
  state->packed.assign(state->counts.size(),
                       std::vector<int64_t>(options.num_sequences, 0));
  return std::unique_ptr<CudaKvCache>(new CudaKvCache(std::move(state)));
}

const CacheShape& CudaKvCache::shape() const { return state_->shape; }
const CudaCacheOptions& CudaKvCache::options() const { return state_->options; }

int64_t CudaKvCache::num_tokens(int sequence) const {
  return state_->tokens.at(sequence);
}

void CudaKvCache::Reset(int sequence) {
  state_->tokens.at(sequence) = 0;
  for (std::vector<int64_t>& packed : state_->packed) packed[sequence] = 0;
}

// ---- Chunks ----

absl::Status CudaKvCache::State::CheckChunk(
    absl::Span<const SequenceChunk> chunk) const {
  KVMIX_CHECK(!chunk.empty());
  std::vector<bool> seen(options.num_sequences);
  int64_t rows = 0;
  for (const SequenceChunk& part : chunk) {
    KVMIX_CHECK(part.sequence >= 0 && part.sequence < options.num_sequences &&
                part.num_tokens > 0 && !seen[part.sequence]);
    seen[part.sequence] = true;
    rows += part.num_tokens;
    if (tokens[part.sequence] + part.num_tokens > options.max_tokens)
      return absl::ResourceExhaustedError(absl::StrCat(
          "sequence ", part.sequence, " has ", tokens[part.sequence],
          " tokens and a chunk brings ", part.num_tokens,
          ", but the KV cache was made for max_tokens ", options.max_tokens));
  }
  if (rows > options.max_chunk_tokens)
    return absl::ResourceExhaustedError(
        absl::StrCat("a chunk brings ", rows,
                     " tokens, but the KV cache was made for max_chunk_tokens ",
                     options.max_chunk_tokens));
  return absl::OkStatus();
}

absl::StatusOr<CudaCounts> CudaKvCache::State::CountsAfter(
    int index, int sequence, int64_t new_tokens) const {
  const auto [side, bits, granularity] = counts[index];
  const int64_t before = packed[index][sequence];
  const int64_t end = tokens[sequence] + new_tokens;
  CudaCounts out{.packed_before = static_cast<int>(before),
                 .packed_after = static_cast<int>(before)};
  if (bits == 16) return out;
  const int64_t window =
      std::max<int64_t>(end - recency->sink_tokens(), 0) - before;
  const absl::StatusOr<int64_t> leaving =
      TokensLeaving(*recency, {.side = side,
                               .bits = bits,
                               .granularity = granularity,
                               .window_tokens = window,
                               .packed_tokens = before});
  if (!leaving.ok()) return AddContext(leaving.status(), SideName(side));
  const int64_t kept = new_tokens == 1 ? window : window - *leaving;
  if (kept > windows[index])
    return absl::InternalError(absl::StrCat(
        SideName(side), ": the recency policy keeps ", kept,
        " tokens unquantized, but promised to keep at most ", windows[index]));
  out.packed_after += static_cast<int>(*leaving);
  return out;
}

absl::Status CudaKvCache::BeginChunk(absl::Span<const SequenceChunk> chunk,
                                     cudaStream_t stream) {
  State& s = *state_;
  KVMIX_RETURN_IF_ERROR(s.CheckChunk(chunk));
  // The copy of the last chunk may not have left the staging memory.
  KVMIX_RETURN_IF_ERROR(CudaStatus(cudaEventSynchronize(s.staged),
                                   "wait for the last chunk's counts"));
  auto* const items = s.staging.as<CudaItem>();
  auto* const counts =
      reinterpret_cast<CudaCounts*>(items + s.options.num_sequences);
  State::Chunk next;
  for (const SequenceChunk& part : chunk) {
    const int item = next.num_items++;
    items[item] = {.sequence = part.sequence,
                   .tokens_before = static_cast<int>(s.tokens[part.sequence]),
                   .num_tokens = static_cast<int>(part.num_tokens),
                   .first_row = next.num_rows};
    for (size_t i = 0; i < s.counts.size(); ++i) {
      KVMIX_ASSIGN_OR_RETURN(
          counts[i * s.options.num_sequences + item],
          s.CountsAfter(static_cast<int>(i), part.sequence, part.num_tokens));
    }
    next.num_rows += static_cast<int>(part.num_tokens);
    next.max_tokens =
        std::max(next.max_tokens, static_cast<int>(part.num_tokens));
    next.any_single |= part.num_tokens == 1;
    next.longest =
        std::max(next.longest, s.tokens[part.sequence] + part.num_tokens);
  }
  const auto copy = [&](void* to, const void* from, int64_t bytes) {
    return CudaStatus(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes),
                                      cudaMemcpyHostToDevice, stream),
                      "copy a chunk's counts");
  };
  KVMIX_RETURN_IF_ERROR(
      copy(s.items, items, next.num_items * sizeof(CudaItem)));
  KVMIX_RETURN_IF_ERROR(
      copy(s.device_counts, counts,
           s.counts.size() * s.options.num_sequences * sizeof(CudaCounts)));
  KVMIX_RETURN_IF_ERROR(CudaStatus(cudaEventRecord(s.staged, stream),
                                   "mark the copy of a chunk's counts"));
  for (int item = 0; item < next.num_items; ++item) {
    s.tokens[items[item].sequence] += items[item].num_tokens;
    for (size_t i = 0; i < s.counts.size(); ++i)
      s.packed[i][items[item].sequence] =
          counts[i * s.options.num_sequences + item].packed_after;
  }
  s.chunk = next;
  return absl::OkStatus();
}

absl::Status CudaKvCache::Append(int layer, CudaRows keys, CudaRows values,
                                 cudaStream_t stream) {
  const State::Chunk& chunk = state_->chunk;
  CudaLayer params = state_->layers.at(layer).params;
  params.num_items = chunk.num_items;
  return CudaStatus(CudaAppend(params, keys, values, chunk.num_rows,
                               chunk.any_single, stream),
                    "append keys and values");
}

absl::Status CudaKvCache::FinishChunk(int layer, cudaStream_t stream) {
  CudaLayer params = state_->layers.at(layer).params;
  params.num_items = state_->chunk.num_items;
  return CudaStatus(CudaFinishChunk(params, state_->chunk.max_tokens, stream),
                    "quantize keys and values");
}

// ---- Attention ----

CudaAttentionParams CudaKvCache::State::AttentionParams(int index) const {
  CudaAttentionParams params;
  params.layer = layers.at(index).params;
  params.layer.num_items = chunk.num_items;
  params.num_heads = options.num_heads;
  params.max_queries = chunk.max_tokens;
  params.partial_out = partials;
  params.partial_max = partials + partial_rows * shape.head_dim;
  params.partial_sum = params.partial_max + partial_rows;
  const int64_t rows = int64_t{chunk.max_tokens} * group();
  const int64_t rows_of_block = single_tokens() ? 8 : rows > 16 ? 64 : 16;
  params.splits = Splits(
      CeilDiv(rows, rows_of_block) * shape.num_kv_heads * chunk.num_items,
      chunk.longest);
  return params;
}

absl::Status CudaKvCache::Attention(int layer, CudaRows queries,
                                    CudaMutableRows out,
                                    const CudaAttentionOptions& options,
                                    cudaStream_t stream) {
  const State& s = *state_;
  CudaAttentionParams params = s.AttentionParams(layer);
  params.queries = queries;
  params.out = out;
  params.scale = options.scale;
  params.sliding_window =
      static_cast<int>(std::min<int64_t>(options.sliding_window, kMaxTokens));
  const bool decode =
      s.single_tokens() &&
      CudaDecodeReads(params.layer.key.format, params.layer.value.format,
                      s.shape.head_dim);
  KVMIX_RETURN_IF_ERROR(CudaStatus(decode ? CudaDecodeAttention(params, stream)
                                          : CudaTiledAttention(params, stream),
                                   "attend"));
  if (params.splits == 1) return absl::OkStatus();
  return CudaStatus(CudaCombine(params, s.chunk.num_rows, stream),
                    "combine attention over ranges");
}

uint64_t CudaKvCache::launch_key() const {
  const State::Chunk& chunk = state_->chunk;
  uint64_t key = 0;
  for (const int64_t part :
       {int64_t{chunk.num_items}, int64_t{chunk.num_rows},
        int64_t{chunk.max_tokens}, int64_t{chunk.any_single},
        int64_t{state_->AttentionParams(0).splits}})
    key = key * 1000003 + static_cast<uint64_t>(part);
  return key;
}

absl::Status CudaKvCache::CheckNumbers(cudaStream_t stream) {
  int unfit = 0;
  KVMIX_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpyAsync(&unfit, state_->unfit, sizeof(unfit),
                                 cudaMemcpyDeviceToHost, stream),
                 "read a flag of the KV cache"));
  KVMIX_RETURN_IF_ERROR(
      CudaStatus(cudaStreamSynchronize(stream), "wait for the KV cache"));
  if (unfit == 0) return absl::OkStatus();
  KVMIX_RETURN_IF_ERROR(
      CudaStatus(cudaMemsetAsync(state_->unfit, 0, sizeof(unfit), stream),
                 "clear a flag of the KV cache"));
  return absl::DataLossError(
      "a key or a value is not finite or beyond the range of half, +-65504");
}

std::string CudaKvCache::DecodeKernelName(int layer) const {
  const CudaLayer& params = state_->layers.at(layer).params;
  if (!CudaDecodeReads(params.key.format, params.value.format, params.head_dim))
    return PrefillKernelName();
  return CudaDecodeName(params.key.format, params.value.format,
                        params.head_dim);
}

std::string CudaKvCache::PrefillKernelName() {
  return "tiled, tensor cores, any format";
}

// ---- The ledger ----

MemoryLedger CudaKvCache::ledger() const {
  const State& s = *state_;
  MemoryLedger ledger;
  int64_t billed = 0;
  for (const State::Layer& layer : s.layers) {
    for (const CudaSide* side : {&layer.params.key, &layer.params.value}) {
      const int index = side->keys ? layer.key_counts : layer.value_counts;
      const CudaFormat& format = side->format;
      const int64_t row = int64_t{2} * s.shape.head_dim;
      const int64_t streams =
          int64_t{s.options.num_sequences} * s.shape.num_kv_heads;
      LedgerSide own;
      for (int i = 0; i < s.options.num_sequences; ++i) {
        const int64_t G = s.shape.num_kv_heads, packed = s.packed[index][i];
        const int64_t sinks =
            std::min<int64_t>(s.tokens[i], layer.params.max_sinks);
        const int64_t window = s.tokens[i] - sinks - packed;
        own.packed_tokens += G * packed;
        own.full_precision_tokens += G * (sinks + window);
        own.sinks += G * sinks * row;
        own.window += G * window * row;
      }
      if (own.packed_tokens > 0) {
        const int64_t scales = format.zeros_offset - format.scales_offset;
        own.codes =
            format.scales_offset * own.packed_tokens / format.block_tokens;
        own.scales = scales * own.packed_tokens / format.block_tokens;
        own.zeros = own.scales;
      }
      const int64_t allocated =
          streams * ((side->window_tokens + layer.params.max_sinks) * row +
                     int64_t{side->max_blocks} * format.block_bytes);
      own.slack = allocated - own.bytes();
      billed += allocated;
      LedgerSide& to = side->keys ? ledger.key : ledger.value;
      to.codes += own.codes;
      to.scales += own.scales;
      to.zeros += own.zeros;
      to.sinks += own.sinks;
      to.window += own.window;
      to.slack += own.slack;
      to.packed_tokens += own.packed_tokens;
      to.full_precision_tokens += own.full_precision_tokens;
    }
  }
  ledger.bookkeeping = s.memory.bytes() - billed;
  return ledger;
}

// ---- Reading back ----

namespace {

// Codes and scales of one stream's packed tokens.
class BlockReader {
 public:
  BlockReader(const CudaFormat& format, bool keys, int head_dim,
              const uint8_t* blocks)
      : format_(format), keys_(keys), head_dim_(head_dim), blocks_(blocks) {}

  struct Number {
    uint8_t code;
    Half scale, zero;
    float x;
  };
  Number At(int64_t position, int channel) const {
    const uint8_t* block =
        blocks_ + position / format_.block_tokens * format_.block_bytes;
    const int token = static_cast<int>(position % format_.block_tokens);
    const Where where = format_.layout == CudaLayout::kFragment
                            ? InFragments(block, token, channel)
                            : InStrings(block, token, channel);
    Number n;
    n.code = static_cast<uint8_t>(where.code);
    std::memcpy(&n.scale, block + format_.scales_offset + 2 * where.group, 2);
    std::memcpy(&n.zero, block + format_.zeros_offset + 2 * where.group, 2);
    const float scale = ToFloat(n.scale);
    n.x = static_cast<float>(where.code) *
              (where.last && format_.last_scale != 1 ? scale * 7.0f / 3.0f
                                                     : scale) +
          ToFloat(n.zero);
    return n;
  }

 private:
  struct Where {
    uint32_t code;
    int group;  // place of its scale
    bool last;  // the eleventh of KVmix's words
  };

  Where InFragments(const uint8_t* block, int token, int channel) const {
    using namespace cuda_layout;  // NOLINT
    const int units = head_dim_ / kUnit, unit = channel / kUnit;
    const int in_unit = channel % kUnit, row = token % kUnit;
    const auto* words = reinterpret_cast<const uint32_t*>(block) +
                        token / kUnit * CodeWords(format_.bits, units);
    const auto place =
        keys_ ? PlaceOf(row, KeyK(in_unit)) : PlaceOf(ValueM(in_unit), row);
    return {
        ReadCode(words, format_.bits, units, unit, place),
        keys_ ? channel : channel / format_.group * kUnit + ScaleSlot(token),
        false};
  }

  Where InStrings(const uint8_t* block, int token, int channel) const {
    const int group =
        format_.per_channel
            ? channel
            : token * (head_dim_ / format_.group) + channel / format_.group;
    const int i = format_.per_channel ? token : channel % format_.group;
    const auto* words =
        reinterpret_cast<const uint32_t*>(block) + group * format_.words;
    return {UnpackCode(words, format_.words, format_.bits, i), group,
            format_.eleven && i + 1 == format_.group};
  }

  const CudaFormat& format_;
  const bool keys_;
  const int head_dim_;
  const uint8_t* blocks_;
};

template <typename T>
absl::StatusOr<std::vector<T>> Download(const T* from, int64_t n) {
  std::vector<T> to(static_cast<size_t>(n));
  if (n == 0) return to;
  KVMIX_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpy(to.data(), from, to.size() * sizeof(T),
                            cudaMemcpyDeviceToHost),
                 "read the KV cache"));
  return to;
}

}  // namespace

absl::StatusOr<CudaKvCache::Stored> CudaKvCache::Read(int index, int sequence,
                                                      int kv_head,
                                                      Side which) const {
  const State& s = *state_;
  const State::Layer& layer = s.layers.at(index);
  const bool keys = which == Side::kKey;
  const CudaSide& side = keys ? layer.params.key : layer.params.value;
  const int counts = keys ? layer.key_counts : layer.value_counts;
  const int64_t D = s.shape.head_dim, max_sinks = layer.params.max_sinks;
  const int64_t slot = int64_t{sequence} * s.shape.num_kv_heads + kv_head;
  KVMIX_RETURN_IF_ERROR(
      CudaStatus(cudaDeviceSynchronize(), "wait for the KV cache"));
  KVMIX_ASSIGN_OR_RETURN(const std::vector<uint16_t> window,
                         Download(side.window + slot * side.window_tokens * D,
                                  side.window_tokens * D));
  KVMIX_ASSIGN_OR_RETURN(
      const std::vector<uint16_t> sinks,
      Download(side.sinks + slot * max_sinks * D, max_sinks * D));
  const int64_t block_bytes =
      int64_t{side.max_blocks} * side.format.block_bytes;
  KVMIX_ASSIGN_OR_RETURN(
      const std::vector<uint8_t> blocks,
      Download(side.blocks + slot * block_bytes, block_bytes));
  const BlockReader reader(side.format, keys, s.shape.head_dim, blocks.data());

  Stored stored;
  stored.sinks = std::min(s.tokens.at(sequence), max_sinks);
  stored.packed = s.packed[counts][sequence];
  stored.window = s.tokens[sequence] - stored.sinks - stored.packed;
  for (int64_t i = 0; i < stored.sinks * D; ++i)
    stored.x.push_back(ToFloat(Half{sinks[i]}));
  for (int64_t p = 0; p < stored.packed + stored.window; ++p)
    for (int d = 0; d < D; ++d) {
      if (p >= stored.packed) {
        stored.x.push_back(
            ToFloat(Half{window[p % side.window_tokens * D + d]}));
        continue;
      }
      const BlockReader::Number n = reader.At(p, d);
      stored.x.push_back(n.x);
      stored.codes.push_back(n.code);
      stored.scales.push_back(n.scale.bits);
      stored.zeros.push_back(n.zero.bits);
    }
  return stored;
}

}  // namespace kvmix
