#include "attention/cuda_kv_cache.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/cuda_attention.h"
#include "attention/cuda_block.h"
#include "attention/cuda_cache_state.h"
#include "attention/cuda_store.h"
#include "attention/recency_step.h"
#include "kvmix/base/check.h"
#include "kvmix/base/device_memory.h"
#include "kvmix/base/half.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"
#include "kvmix/cache_plan.h"
#include "quant/bit_packing.h"
#include "quant/cuda_layout.h"
#include "quant/quantizer.h"

namespace kvmix {
namespace {

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

absl::Status ValidateOptions(const CacheShape& shape,
                             const CudaCacheOptions& options) {
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

absl::Status CheckDropsTokens(const EvictionPolicy& policy, int head_dim) {
  KVMIX_ASSIGN_OR_RETURN(const QuantFormat demoted,
                         policy.DemotionFormat(Side::kKey, head_dim));
  if (demoted.bits() == 0) return absl::OkStatus();
  return absl::UnimplementedError(
      "the eviction policy demotes tokens to fewer bits, for which there are "
      "no kernels on CUDA; policies that drop them have kernels");
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
  KVMIX_RETURN_IF_ERROR(ValidateOptions(shape, options));
  if (shape.head_dim > kCudaMaxTiledHeadDim)
    return absl::UnimplementedError(absl::StrCat(
        "head_dim is ", shape.head_dim, " but kernels on CUDA take at most ",
        kCudaMaxTiledHeadDim));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsNonNegative(recency.sink_tokens(), "sink_tokens"));
  if (options.eviction != nullptr)
    KVMIX_RETURN_IF_ERROR(CheckDropsTokens(*options.eviction, shape.head_dim));
  if (plan.full_precision() != CachePlan::HALF)
    return absl::UnimplementedError(
        absl::StrCat("full_precision is ",
                     CachePlan::FullPrecision_Name(plan.full_precision()),
                     " but a cache on CUDA stores HALF"));
  if (plan.layer_size() != shape.num_layers)
    return absl::InvalidArgumentError(
        absl::StrCat("the cache plan has ", plan.layer_size(),
                     " layers but the model has ", shape.num_layers));
  return CheckHeadsAreAlike(
      plan, absl::StatusCode::kUnimplemented,
      "for which there are no kernels on CUDA; granularity: LAYER has kernels");
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
    return absl::UnimplementedError(
        absl::StrCat("quantizer \"", format.quantizer(),
                     "\" has no kernels on CUDA; \"group_affine\" has"));
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
// keeps most when there are none, or as many as fit. `unpacked`: tokens that
// come back from packed blocks, at most.
int64_t WindowTokens(const RecencyPolicy& recency, WindowState state,
                     int64_t max_tokens, int64_t max_chunk, int64_t unpacked) {
  const int64_t more = max_chunk + unpacked;
  int64_t kept = 0, seen = 0;
  for (int64_t reach = std::min(more, max_tokens); seen < reach;
       reach = std::min(kept + more, max_tokens)) {
    for (; seen < reach; ++seen) {
      state.window_tokens = seen + 1;
      for (const int64_t packed : {int64_t{0}, max_tokens - seen - 1}) {
        state.packed_tokens = packed;
        kept = std::max(kept,
                        state.window_tokens - recency.TokensToQuantize(state));
      }
    }
  }
  return std::min(kept + unpacked + 1, max_tokens);
}

}  // namespace

absl::StatusOr<int> CudaKvCache::State::KindOf(const CudaFormat& format,
                                               Side side, int layer) {
  Kind kind{.side = side,
            .bits = format.bits,
            .granularity = GranularityOf(format),
            .layer = evicts() ? layer : -1,
            .window = max_positions()};
  const auto found =
      std::find_if(kinds.begin(), kinds.end(), [&](const Kind& other) {
        return other.side == kind.side && other.bits == kind.bits &&
               other.granularity == kind.granularity &&
               other.layer == kind.layer;
      });
  if (found != kinds.end()) return static_cast<int>(found - kinds.begin());
  if (format.layout != CudaLayout::kNone) {
    const WindowState state{
        .side = side, .bits = kind.bits, .granularity = kind.granularity};
    KVMIX_RETURN_IF_ERROR(recency->Validate(state));
    kind.window =
        WindowTokens(*recency, state, max_positions(), options.max_chunk_tokens,
                     evicts() ? kind.granularity - 1 : 0);
  }
  kind.window = RoundUp(std::max<int64_t>(kind.window, 1), kTile);
  kinds.push_back(kind);
  return static_cast<int>(kinds.size()) - 1;
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
            "the recency policy stores tokens in formats by age, for which "
            "there are no kernels on CUDA");
      absl::StatusOr<CudaFormat> own = FormatOf(format, side, shape.head_dim);
      if (!own.ok()) return AddContext(own.status(), Place(i, side));
      params.format = *own;
      params.keys = keys;
      absl::StatusOr<int> kind = KindOf(*own, side, i);
      if (!kind.ok()) return AddContext(kind.status(), Place(i, side));
      (keys ? layer.key_kind : layer.value_kind) = *kind;
    }
  }
  return absl::OkStatus();
}

// ---- Memory ----

int64_t CudaKvCache::State::WindowRows(int kind, int64_t room) const {
  const int64_t positions = std::max<int64_t>(room - max_sinks(), 1);
  return room == 0 ? 0
                   : std::min(kinds[kind].window, RoundUp(positions, kTile));
}

int64_t CudaKvCache::State::Blocks(const CudaSide& side, int64_t room) const {
  if (side.format.layout == CudaLayout::kNone) return 0;
  return CeilDiv(std::max<int64_t>(room - max_sinks(), 0),
                 side.format.block_tokens);
}

int64_t CudaKvCache::State::StreamBytes(const CudaSide& side, int kind,
                                        int64_t room) const {
  if (room == 0) return 0;
  const int64_t row = int64_t{2} * shape.head_dim;
  return (WindowRows(kind, room) + max_sinks()) * row +
         Blocks(side, room) * side.format.block_bytes;
}

std::vector<CudaPlace> CudaKvCache::State::LayOutStreams(
    int index, const std::vector<int64_t>& room, DeviceArena& arena) const {
  const Layer& layer = layers[index];
  std::vector<CudaPlace> both;
  for (Side which : {Side::kKey, Side::kValue}) {
    const CudaSide& side = layer.side(which);
    for (const int64_t tokens : room) {
      CudaPlace& place = both.emplace_back();
      place.window = arena.Take<uint16_t>(
          WindowRows(layer.kind(which), tokens) * shape.head_dim);
      place.sinks = arena.Take<uint16_t>(max_sinks() * shape.head_dim);
      place.blocks =
          arena.Take<uint8_t>(Blocks(side, tokens) * side.format.block_bytes);
      if (side.keys && signals().received)
        place.received = arena.Take<float>(tokens);
    }
  }
  return both;
}

void CudaKvCache::State::SetPlaces(int layer, int sequence,
                                   const std::vector<CudaPlace>& both) {
  const int64_t G = shape.num_kv_heads;
  for (Side side : {Side::kKey, Side::kValue})
    std::copy_n(both.begin() + (side == Side::kKey ? 0 : G), G,
                places.begin() + PlaceIndex(layer, side, sequence, 0));
}

void CudaKvCache::State::LayOut(DeviceArena& arena) {
  const int64_t row = shape.head_dim;
  const int64_t chunk = options.max_chunk_tokens * shape.num_kv_heads * row;
  items = arena.Take<CudaItem>(options.num_sequences);
  device_counts = arena.Take<CudaCounts>(static_cast<int64_t>(kinds.size()) *
                                         counts_of_kind());
  device_places =
      arena.Take<CudaPlace>(PlaceIndex(shape.num_layers, Side::kKey, 0, 0));
  unfit = arena.Take<int>(1);
  const int64_t most_splits =
      CeilDiv(CeilDiv(options.max_tokens, kTile) + 2, kTilesOfSplit);
  partial_rows = std::min<int64_t>(
      int64_t{kRowsOfBlock} * kBlocksOfSm * num_sms,
      options.max_chunk_tokens * options.num_heads * most_splits);
  partials = arena.Take<float>(partial_rows * (shape.head_dim + 2));
  uint16_t* const chunk_keys = arena.Take<uint16_t>(chunk);
  uint16_t* const chunk_values = arena.Take<uint16_t>(chunk);
  if (evicts()) {
    kept = arena.Take<int>(shape.num_kv_heads * options.max_tokens);
    compactions = arena.Take<CudaCompaction>(2 * shape.num_kv_heads);
    recent_queries = arena.Take<float>(
        int64_t{shape.num_layers} * options.num_sequences *
        signals().query_window * options.num_heads * shape.head_dim);
  }
  if (signals().received) {
    score_partials = arena.Take<float>(
        options.max_chunk_tokens * options.num_heads * kCudaScoreRanges * 2);
    received = arena.Take<float>(int64_t{options.num_sequences} *
                                 shape.num_kv_heads * options.max_tokens);
  }
  for (int i = 0; i < shape.num_layers; ++i) {
    Layer& layer = layers[i];
    layer.params.items = items;
    layer.params.num_kv_heads = shape.num_kv_heads;
    layer.params.head_dim = shape.head_dim;
    layer.params.max_sinks = static_cast<int>(max_sinks());
    layer.params.counted_heads = counted_heads();
    layer.params.flush_before_attention = QuantizesBeforeAttention(*recency, 1);
    layer.params.unfit = unfit;
    for (CudaSide* side : {&layer.params.key, &layer.params.value}) {
      const Side which = side->keys ? Side::kKey : Side::kValue;
      side->counts = device_counts + layer.kind(which) * counts_of_kind();
      side->places = device_places + PlaceIndex(i, which, 0, 0);
      side->chunk = side->keys ? chunk_keys : chunk_values;
      side->window_tokens = static_cast<int>(kinds[layer.kind(which)].window);
    }
    if (evicts()) continue;  // memory for the tokens that are there
    const std::vector<int64_t> room(shape.num_kv_heads, options.max_tokens);
    for (int s = 0; s < options.num_sequences; ++s)
      SetPlaces(i, s, LayOutStreams(i, room, arena));
  }
}

absl::Status CudaKvCache::State::Allocate() {
  places.resize(PlaceIndex(shape.num_layers, Side::kKey, 0, 0));
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
  KVMIX_RETURN_IF_ERROR(CudaStatus(
      cudaMemcpy(device_places, places.data(),
                 places.size() * sizeof(CudaPlace), cudaMemcpyHostToDevice),
      "say where the KV cache lies"));
  KVMIX_RETURN_IF_ERROR(staging.Reserve(StagingBytes(), "the KV cache"));
  return CudaStatus(cudaEventCreate(&staged),
                    "create an event for the KV cache");
}

// Ranges of the cache for `blocks` blocks of threads without: what fills the
// device about once.
int CudaKvCache::State::Splits(int64_t blocks) const {
  const int64_t useful = CeilDiv(RoundedLongest() / kTile, kTilesOfSplit);
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
  if (state->evicts()) {
    state->evicting.resize(static_cast<size_t>(shape.num_layers) *
                           options.num_sequences);
    for (int i = 0; i < options.num_sequences; ++i) state->ForgetEvicting(i);
  }
  state->tokens.assign(options.num_sequences, 0);
  state->packed.assign(state->kinds.size(),
                       std::vector<int64_t>(state->counts_of_kind(), 0));
  return std::unique_ptr<CudaKvCache>(new CudaKvCache(std::move(state)));
}

const CacheShape& CudaKvCache::shape() const { return state_->shape; }
const CudaCacheOptions& CudaKvCache::options() const { return state_->options; }

int64_t CudaKvCache::num_tokens(int sequence) const {
  return state_->tokens.at(sequence);
}

void CudaKvCache::Reset(int sequence) {
  State& s = *state_;
  s.tokens.at(sequence) = 0;
  for (std::vector<int64_t>& packed : s.packed)
    std::fill_n(packed.begin() + int64_t{sequence} * s.counted_heads(),
                s.counted_heads(), 0);
  if (s.evicts()) s.ForgetEvicting(sequence);
}

// ---- Chunks ----

absl::Status CheckChunk(const CudaCacheOptions& options,
                        absl::Span<const int64_t> tokens,
                        absl::Span<const SequenceChunk> chunk) {
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
    int index, int sequence, int head, int64_t new_tokens) const {
  const Kind& kind = kinds[index];
  const int64_t before = packed[index][sequence * counted_heads() + head];
  // Without eviction the tokens of the chunk are counted in the end.
  const int64_t end = evicts() ? Stored(kind.layer, sequence, head)
                               : tokens[sequence] + new_tokens;
  CudaCounts out{.tokens_before = static_cast<int>(end - new_tokens),
                 .packed_before = static_cast<int>(before),
                 .packed_after = static_cast<int>(before)};
  out.compacts = evicts() && at(kind.layer, sequence).compacts;
  const bool packs_later =
      out.compacts && !QuantizesBeforeAttention(*recency, new_tokens);
  if (kind.bits == 16 || packs_later) return out;
  const int64_t window =
      std::max<int64_t>(end - recency->sink_tokens(), 0) - before;
  const absl::StatusOr<int64_t> leaving =
      TokensLeaving(*recency, {.side = kind.side,
                               .bits = kind.bits,
                               .granularity = kind.granularity,
                               .window_tokens = window,
                               .packed_tokens = before});
  if (!leaving.ok()) return AddContext(leaving.status(), SideName(kind.side));
  const int64_t kept = new_tokens == 1 ? window : window - *leaving;
  if (kept > kind.window)
    return absl::InternalError(absl::StrCat(
        SideName(kind.side), ": the recency policy keeps ", kept,
        " tokens unquantized, but promised to keep at most ", kind.window));
  out.packed_after += static_cast<int>(*leaving);
  return out;
}

absl::Status CudaKvCache::BeginChunk(absl::Span<const SequenceChunk> chunk,
                                     cudaStream_t stream) {
  State& s = *state_;
  KVMIX_RETURN_IF_ERROR(CheckChunk(s.options, s.tokens, chunk));
  // The copy of the last chunk may not have left the staging memory.
  KVMIX_RETURN_IF_ERROR(CudaStatus(cudaEventSynchronize(s.staged),
                                   "wait for the last chunk's counts"));
  const int heads = s.counted_heads();
  auto* const items = s.staging.as<CudaItem>();
  auto* const counts =
      reinterpret_cast<CudaCounts*>(items + s.options.num_sequences);
  State::Chunk next;
  for (const SequenceChunk& part : chunk) {
    const int item = next.num_items();
    items[item] = {.sequence = part.sequence,
                   .tokens_seen = static_cast<int>(s.tokens[part.sequence]),
                   .num_tokens = static_cast<int>(part.num_tokens),
                   .first_row = next.num_rows};
    if (s.evicts()) KVMIX_RETURN_IF_ERROR(s.BeginEvicting(part, stream));
    for (size_t i = 0; i < s.kinds.size(); ++i)
      for (int h = 0; h < heads; ++h) {
        CudaCounts& to = counts[i * s.counts_of_kind() + item * heads + h];
        KVMIX_ASSIGN_OR_RETURN(
            to, s.CountsAfter(static_cast<int>(i), part.sequence, h,
                              part.num_tokens));
        next.longest =
            std::max(next.longest, to.tokens_before + part.num_tokens);
      }
    next.parts.push_back(part);
    next.num_rows += static_cast<int>(part.num_tokens);
    next.max_tokens =
        std::max(next.max_tokens, static_cast<int>(part.num_tokens));
    next.any_single |= part.num_tokens == 1;
  }
  const auto copy = [&](void* to, const void* from, int64_t bytes) {
    return CudaStatus(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes),
                                      cudaMemcpyHostToDevice, stream),
                      "copy a chunk's counts");
  };
  KVMIX_RETURN_IF_ERROR(
      copy(s.items, items, next.num_items() * sizeof(CudaItem)));
  KVMIX_RETURN_IF_ERROR(
      copy(s.device_counts, counts,
           s.kinds.size() * s.counts_of_kind() * sizeof(CudaCounts)));
  KVMIX_RETURN_IF_ERROR(CudaStatus(cudaEventRecord(s.staged, stream),
                                   "mark the copy of a chunk's counts"));
  for (int item = 0; item < next.num_items(); ++item) {
    const int sequence = items[item].sequence;
    s.tokens[sequence] += items[item].num_tokens;
    for (size_t i = 0; i < s.kinds.size(); ++i)
      for (int h = 0; h < heads; ++h)
        s.packed[i][sequence * heads + h] =
            counts[i * s.counts_of_kind() + item * heads + h].packed_after;
  }
  s.chunk = std::move(next);
  return absl::OkStatus();
}

absl::Status CudaKvCache::Append(int layer, CudaRows keys, CudaRows values,
                                 cudaStream_t stream) {
  const State::Chunk& chunk = state_->chunk;
  CudaLayer params = state_->layers.at(layer).params;
  params.num_items = chunk.num_items();
  return CudaStatus(CudaAppend(params, keys, values, chunk.num_rows,
                               chunk.any_single, stream),
                    "append keys and values");
}

absl::Status CudaKvCache::FinishChunk(int layer, cudaStream_t stream) {
  State& s = *state_;
  CudaLayer params = s.layers.at(layer).params;
  params.num_items = s.chunk.num_items();
  KVMIX_RETURN_IF_ERROR(
      CudaStatus(CudaFinishChunk(params, s.chunk.max_tokens, stream),
                 "quantize keys and values"));
  // Longer chunks wait in a buffer that the next layer will need.
  if (!s.evicts() || s.chunk.single_tokens()) return absl::OkStatus();
  return s.FinishEvicting(layer, stream);
}

absl::Status CudaKvCache::EndChunk(cudaStream_t stream) {
  State& s = *state_;
  if (!s.evicts() || !s.chunk.single_tokens()) return absl::OkStatus();
  for (int i = 0; i < s.shape.num_layers; ++i)
    KVMIX_RETURN_IF_ERROR(s.FinishEvicting(i, stream));
  return absl::OkStatus();
}

// ---- Attention ----

CudaAttentionParams CudaKvCache::State::AttentionParams(int index) const {
  CudaAttentionParams params;
  params.layer = layers.at(index).params;
  params.layer.num_items = chunk.num_items();
  params.num_heads = options.num_heads;
  params.max_queries = chunk.max_tokens;
  params.partial_out = partials;
  params.partial_max = partials + partial_rows * shape.head_dim;
  params.partial_sum = params.partial_max + partial_rows;
  const int64_t rows = int64_t{chunk.max_tokens} * group();
  const int64_t rows_of_block = chunk.single_tokens() ? 8 : rows > 16 ? 64 : 16;
  params.splits = Splits(CeilDiv(rows, rows_of_block) * shape.num_kv_heads *
                         chunk.num_items());
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
      s.chunk.single_tokens() &&
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
       {int64_t{chunk.num_items()}, int64_t{chunk.num_rows},
        int64_t{chunk.max_tokens}, int64_t{chunk.any_single},
        int64_t{state_->AttentionParams(0).splits},
        state_->signals().received ? state_->RoundedLongest() : 0})
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

absl::Status CudaKvCache::Observe(int layer, CudaRows queries, float scale,
                                  cudaStream_t stream) {
  if (!state_->evicts()) return absl::OkStatus();
  return state_->Observe(layer, queries, scale, stream);
}

// ---- The ledger ----

MemoryLedger CudaKvCache::ledger() const {
  const State& s = *state_;
  MemoryLedger ledger;
  int64_t billed = 0;
  for (int index = 0; index < s.shape.num_layers; ++index) {
    for (Side which : {Side::kKey, Side::kValue}) {
      const State::Layer& layer = s.layers[index];
      const CudaSide& side = layer.side(which);
      const CudaFormat& format = side.format;
      const int64_t row = int64_t{2} * s.shape.head_dim;
      const int kind = layer.kind(which);
      LedgerSide own;
      int64_t allocated = 0;
      for (int i = 0; i < s.options.num_sequences; ++i)
        for (int h = 0; h < s.shape.num_kv_heads; ++h) {
          const int64_t stored = s.Stored(index, i, h);
          const int64_t packed =
              s.packed[kind][i * s.counted_heads() + s.counted(h)];
          const int64_t sinks =
              std::min<int64_t>(stored, layer.params.max_sinks);
          own.packed_tokens += packed;
          own.full_precision_tokens += stored - packed;
          if (format.bits == 16) own.unquantized_tokens += stored;
          own.sinks += sinks * row;
          own.window += (stored - sinks - packed) * row;
          allocated += s.StreamBytes(side, kind, s.Room(index, i, h));
        }
      if (own.packed_tokens > 0) {
        const int64_t scales = format.zeros_offset - format.scales_offset;
        own.codes =
            format.scales_offset * own.packed_tokens / format.block_tokens;
        own.scales = scales * own.packed_tokens / format.block_tokens;
        own.zeros = own.scales;
      }
      own.slack = allocated - own.bytes();
      billed += allocated;
      (which == Side::kKey ? ledger.key : ledger.value) += own;
    }
  }
  ledger.bookkeeping = s.memory.bytes() + s.EvictingBytes() - billed;
  return ledger;
}

// ---- Reading back ----

namespace {

// A packed number of a stream's blocks.
struct PackedNumber {
  uint8_t code;
  Half scale, zero;
  float x;
};
PackedNumber NumberAt(const CudaSide& side, int head_dim, const uint8_t* blocks,
                      int64_t position, int channel) {
  const CudaFormat& format = side.format;
  const uint8_t* block =
      blocks + position / format.block_tokens * format.block_bytes;
  const CudaCode at =
      CodeAt(format, side.keys, block, head_dim,
             static_cast<int>(position % format.block_tokens), channel);
  PackedNumber n;
  n.code = static_cast<uint8_t>(at.code);
  std::memcpy(&n.scale, block + format.scales_offset + 2 * at.group, 2);
  std::memcpy(&n.zero, block + format.zeros_offset + 2 * at.group, 2);
  const float scale = ToFloat(n.scale);
  n.x = static_cast<float>(at.code) *
            (at.last && format.last_scale != 1 ? scale * 7.0f / 3.0f : scale) +
        ToFloat(n.zero);
  return n;
}

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
  const CudaSide& side = layer.side(which);
  const int kind = layer.kind(which);
  const int64_t D = s.shape.head_dim, max_sinks = layer.params.max_sinks;
  const int64_t tokens = s.Stored(index, sequence, kv_head);
  const int64_t room = s.Room(index, sequence, kv_head);
  const CudaPlace& place =
      s.places.at(s.PlaceIndex(index, which, sequence, kv_head));
  KVMIX_RETURN_IF_ERROR(
      CudaStatus(cudaDeviceSynchronize(), "wait for the KV cache"));
  KVMIX_ASSIGN_OR_RETURN(const std::vector<uint16_t> window,
                         Download(place.window, s.WindowRows(kind, room) * D));
  KVMIX_ASSIGN_OR_RETURN(const std::vector<uint16_t> sinks,
                         Download(place.sinks, room == 0 ? 0 : max_sinks * D));
  KVMIX_ASSIGN_OR_RETURN(
      const std::vector<uint8_t> blocks,
      Download(place.blocks, s.Blocks(side, room) * side.format.block_bytes));

  Stored stored;
  stored.sinks = std::min(tokens, max_sinks);
  stored.packed =
      s.packed[kind][sequence * s.counted_heads() + s.counted(kv_head)];
  stored.window = tokens - stored.sinks - stored.packed;
  for (int64_t i = 0; i < stored.sinks * D; ++i)
    stored.x.push_back(ToFloat(Half{sinks[i]}));
  for (int64_t p = 0; p < stored.packed + stored.window; ++p)
    for (int d = 0; d < D; ++d) {
      if (p >= stored.packed) {
        stored.x.push_back(
            ToFloat(Half{window[p % side.window_tokens * D + d]}));
        continue;
      }
      const PackedNumber n =
          NumberAt(side, s.shape.head_dim, blocks.data(), p, d);
      stored.x.push_back(n.x);
      stored.codes.push_back(n.code);
      stored.scales.push_back(n.scale.bits);
      stored.zeros.push_back(n.zero.bits);
    }
  return stored;
}

}  // namespace kvmix
