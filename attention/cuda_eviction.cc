// Tokens that leave the device KV cache. The policy decides on the host, at the
// end of a chunk, one layer after another, as KvCache asks it; kernels carry it
// out (cuda_compact.h). The tokens that stay move into memory of their size,
// and what they had is freed or becomes the next layer's.
//
// A layer's streams have room for a few tokens more than they hold, so a decode
// step needs no new memory, and a captured one stays valid: kernels find the
// streams through a table on the device. Chunks of more tokens wait in the
// chunk's buffer, and pass from there into new memory whether tokens leave or
// not.
#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/cuda_cache_state.h"
#include "attention/eviction_step.h"
#include "attention/recency_step.h"
#include "kvmix/base/check.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

// Tokens that a stream has room for beyond those that it holds.
constexpr int64_t kRoom = 64;

absl::Status Copy(void* to, const void* from, int64_t bytes,
                  cudaMemcpyKind kind, cudaStream_t stream) {
  return CudaStatus(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, stream),
      "copy what tokens leave the KV cache");
}

// Of tokens [0, n), those that are not dropped.
std::vector<int> Kept(int64_t n, const TokenList& dropped) {
  std::vector<int> kept;
  auto next = dropped.begin();
  for (int64_t t = 0; t < n; ++t) {
    if (next != dropped.end() && *next == t) {
      ++next;
    } else {
      kept.push_back(static_cast<int>(t));
    }
  }
  return kept;
}

}  // namespace

// What the policy is shown, and the memory behind it.
struct CudaKvCache::State::Shown {
  EvictionState state;
  int64_t stride = 0;  // tokens from one head's to the next one's
  std::vector<float> keys, values;
  std::vector<std::vector<float>> received, scores;  // [G]
};

EvictionState CudaKvCache::State::StateOf(int layer, int sequence) const {
  EvictionState state{.layer = layer,
                      .num_layers = shape.num_layers,
                      .head_dim = shape.head_dim,
                      .tokens_seen = tokens[sequence],
                      .multiple = 1,
                      .heads = {}};
  for (const std::vector<int64_t>& positions : at(layer, sequence).positions) {
    const auto stored = static_cast<int64_t>(positions.size());
    state.heads.push_back(
        {.num_tokens = stored,
         .first_candidate = std::min(stored, recency->sink_tokens()),
         .positions = positions.data()});
  }
  return state;
}

absl::Status CudaKvCache::State::BeginEvicting(const SequenceChunk& part,
                                               cudaStream_t stream) {
  for (int i = 0; i < shape.num_layers; ++i) {
    Evicting& own = at(i, part.sequence);
    if (part.num_tokens == 1 && own.memory.bytes() == 0) {  // the first of all
      own.room.assign(shape.num_kv_heads, std::min(kRoom, options.max_tokens));
      KVMIX_ASSIGN_OR_RETURN(own.memory, NewStreams(i, own.room, stream));
      DeviceArena arena(own.memory.data());
      SetPlaces(i, part.sequence, LayOutStreams(i, own.room, arena));
      KVMIX_RETURN_IF_ERROR(UploadPlaces(i, part.sequence, stream));
    }
    bool full = part.num_tokens > 1;
    for (int h = 0; h < shape.num_kv_heads; ++h) {
      std::vector<int64_t>& positions = own.positions[h];
      for (int64_t t = 0; t < part.num_tokens; ++t)
        positions.push_back(tokens[part.sequence] + t);
      full |= static_cast<int64_t>(positions.size()) >= own.room[h];
    }
    EvictionState state = StateOf(i, part.sequence);
    state.tokens_seen += part.num_tokens;
    own.drops = options.eviction->WouldDrop(state);
    own.compacts = own.drops || full;
  }
  return absl::OkStatus();
}

absl::Status CudaKvCache::State::FinishEvicting(int layer,
                                                cudaStream_t stream) {
  for (int item = 0; item < chunk.num_items(); ++item) {
    const Evicting& own = at(layer, chunk.parts[item].sequence);
    if (!own.compacts) continue;
    std::vector<TokenList> dropped(shape.num_kv_heads);
    if (own.drops) {
      KVMIX_ASSIGN_OR_RETURN(dropped, Dropped(layer, item, stream));
    }
    KVMIX_RETURN_IF_ERROR(AddContext(Compact(layer, item, dropped, stream),
                                     absl::StrCat("layer ", layer)));
  }
  return absl::OkStatus();
}

void CudaKvCache::State::ForgetEvicting(int sequence) {
  for (int i = 0; i < shape.num_layers; ++i) {
    at(i, sequence) = Evicting();
    at(i, sequence).room.assign(shape.num_kv_heads, 0);
    at(i, sequence).positions.resize(shape.num_kv_heads);
  }
}

int64_t CudaKvCache::State::EvictingBytes() const {
  int64_t bytes = spare.bytes() + readable.bytes();
  for (const Evicting& own : evicting) bytes += own.memory.bytes();
  return bytes;
}

// ---- The policy ----

absl::Status CudaKvCache::State::Observe(int layer, CudaRows queries,
                                         float scale, cudaStream_t stream) {
  KVMIX_CHECK(queries.type == CudaNumber::kFloat);
  query_scale = scale;
  CudaObservation observation{
      .layer = layers[layer].params,
      .queries = static_cast<const float*>(queries.data),
      .stride = queries.stride,
      .num_heads = options.num_heads,
      .scale = scale,
      .max_queries = chunk.max_tokens,
      .max_stored = static_cast<int>(RoundedLongest()),
      .partials = score_partials,
      .received = received,
      .received_stride = static_cast<int>(options.max_tokens)};
  observation.layer.num_items = chunk.num_items();
  if (signals().query_window > 0)
    KVMIX_RETURN_IF_ERROR(CudaStatus(
        CudaKeepQueries(observation, RecentQueries(layer),
                        static_cast<int>(signals().query_window), stream),
        "keep queries for the eviction policy"));
  if (!signals().received) return absl::OkStatus();
  return CudaStatus(CudaAddReceived(observation, stream),
                    "sum attention for the eviction policy");
}

template <typename Launch>
absl::StatusOr<std::vector<float>> CudaKvCache::State::ReadBack(
    int64_t size, const Launch& launch, cudaStream_t stream) {
  constexpr char kDoing[] = "read the KV cache for the eviction policy";
  const int64_t bytes = size * static_cast<int64_t>(sizeof(float));
  if (readable.bytes() < bytes) {
    readable = DeviceMemory();
    KVMIX_ASSIGN_OR_RETURN(
        readable,
        DeviceMemory::Allocate(bytes, "what an eviction policy reads"));
  }
  KVMIX_RETURN_IF_ERROR(CudaStatus(launch(readable.as<float>()), kDoing));
  std::vector<float> x(size);
  KVMIX_RETURN_IF_ERROR(
      Copy(x.data(), readable.data(), bytes, cudaMemcpyDeviceToHost, stream));
  KVMIX_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream), kDoing));
  return x;
}

absl::Status CudaKvCache::State::ShowScores(int layer, int item, Shown& shown,
                                            cudaStream_t stream) {
  const int64_t seen = shown.state.tokens_seen;
  const int64_t window = signals().query_window;
  const int64_t count = std::min(window, seen), rows = count * group();
  const int64_t stride = shown.stride;
  KVMIX_ASSIGN_OR_RETURN(
      const std::vector<float> scores,
      ReadBack(
          shape.num_kv_heads * rows * stride,
          [&](float* out) {
            return CudaScoreQueries(
                layers[layer].params, item, RecentQueries(layer),
                static_cast<int>(window), static_cast<int>(count),
                static_cast<int>(seen) - 1, options.num_heads, query_scale,
                static_cast<int>(stride), out, stream);
          },
          stream));
  for (int h = 0; h < shape.num_kv_heads; ++h) {
    EvictionHead& head = shown.state.heads[h];
    std::vector<float>& own = shown.scores.emplace_back();
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t t = 0; t < head.num_tokens; ++t)
        own.push_back(head.positions[t] > seen - count + r / group()
                          ? -std::numeric_limits<float>::infinity()
                          : scores[(h * rows + r) * stride + t]);
    head.scores = own.data();
    head.score_rows = rows;
    head.query_heads = group();
  }
  return absl::OkStatus();
}

absl::Status CudaKvCache::State::Show(int layer, int item, Shown& shown,
                                      cudaStream_t stream) {
  const int sequence = chunk.parts[item].sequence;
  shown.state = StateOf(layer, sequence);
  for (const EvictionHead& head : shown.state.heads)
    shown.stride = std::max(shown.stride, head.num_tokens);
  const int64_t G = shape.num_kv_heads, stride = shown.stride;
  const auto read_tokens = [&](Side side) {
    return ReadBack(
        G * stride * shape.head_dim,
        [&](float* out) {
          return CudaReadTokens(layers[layer].params, side == Side::kKey, item,
                                static_cast<int>(stride), out, stream);
        },
        stream);
  };
  if (signals().keys) {
    KVMIX_ASSIGN_OR_RETURN(shown.keys, read_tokens(Side::kKey));
  }
  if (signals().values) {
    KVMIX_ASSIGN_OR_RETURN(shown.values, read_tokens(Side::kValue));
  }
  for (int h = 0; h < G; ++h) {
    EvictionHead& head = shown.state.heads[h];
    const int64_t first = h * stride * shape.head_dim;
    if (signals().keys) head.keys = shown.keys.data() + first;
    if (signals().values) head.values = shown.values.data() + first;
    if (!signals().received) continue;
    std::vector<float>& own = shown.received.emplace_back(head.num_tokens);
    KVMIX_RETURN_IF_ERROR(Copy(own.data(), Received(layer, item, h),
                               head.num_tokens * sizeof(float),
                               cudaMemcpyDeviceToHost, stream));
    head.received = own.data();
  }
  if (signals().query_window > 0)
    KVMIX_RETURN_IF_ERROR(ShowScores(layer, item, shown, stream));
  return CudaStatus(cudaStreamSynchronize(stream),
                    "read the KV cache for the eviction policy");
}

absl::StatusOr<std::vector<TokenList>> CudaKvCache::State::Dropped(
    int layer, int item, cudaStream_t stream) {
  Shown shown;
  KVMIX_RETURN_IF_ERROR(Show(layer, item, shown, stream));
  std::vector<TokenList> dropped = options.eviction->TokensToDrop(shown.state);
  KVMIX_RETURN_IF_ERROR(CheckDropped(shown.state, dropped));
  return dropped;
}

// Where the attention that a head's tokens have received lies at the end of a
// chunk.
const float* CudaKvCache::State::Received(int layer, int item, int head) const {
  const auto [sequence, new_tokens] = chunk.parts[item];
  return new_tokens == 1
             ? places[PlaceIndex(layer, Side::kKey, sequence, head)].received
             : received + (int64_t{item} * shape.num_kv_heads + head) *
                              options.max_tokens;
}

// ---- The tokens that stay ----

// Counts as KvStream::Remove and KvStream::QuantizeOldest move tokens.
absl::StatusOr<CudaCompaction> CudaKvCache::State::CompactionOf(
    int layer, Side side, int item, int head, const TokenList& dropped) const {
  const auto [sequence, new_tokens] = chunk.parts[item];
  const int index = layers[layer].kind(side);
  const Kind& kind = kinds[index];
  const int64_t stored = Stored(layer, sequence, head);
  const int64_t sinks = std::min(stored, max_sinks());
  const int64_t packed_before =
      packed[index][sequence * counted_heads() + head];
  const int64_t left = stored - static_cast<int64_t>(dropped.size()) - sinks;
  int64_t whole = packed_before, requantized = packed_before;
  if (!dropped.empty() && dropped.front() - sinks < packed_before) {
    const int64_t first = dropped.front() - sinks;
    whole = first - first % layers[layer].side(side).format.block_tokens;
    const int64_t leave = std::lower_bound(dropped.begin(), dropped.end(),
                                           sinks + packed_before) -
                          dropped.begin();
    const int64_t anew = packed_before - leave - whole;
    requantized = whole + anew - anew % kind.granularity;
  }
  int64_t packed_after = requantized;
  if (kind.bits != 16 && !QuantizesBeforeAttention(*recency, new_tokens)) {
    const absl::StatusOr<int64_t> leaving =
        TokensLeaving(*recency, {.side = side,
                                 .bits = kind.bits,
                                 .granularity = kind.granularity,
                                 .window_tokens = left - requantized,
                                 .packed_tokens = requantized});
    if (!leaving.ok()) return AddContext(leaving.status(), SideName(side));
    packed_after += *leaving;
  }
  if (left - packed_after > kind.window)
    return absl::InternalError(absl::StrCat(
        SideName(side), ": the recency policy keeps ", left - packed_after,
        " tokens unquantized, but promised to keep at most ", kind.window));
  CudaCompaction compaction;
  compaction.tokens = static_cast<int>(sinks + left);
  compaction.whole = static_cast<int>(whole);
  compaction.requantized = static_cast<int>(requantized);
  compaction.packed = static_cast<int>(packed_after);
  return compaction;
}

absl::StatusOr<DeviceMemory> CudaKvCache::State::NewStreams(
    int layer, const std::vector<int64_t>& room, cudaStream_t stream) {
  DeviceArena count(nullptr);
  LayOutStreams(layer, room, count);
  if (spare.bytes() == count.bytes())
    return std::exchange(spare, DeviceMemory());
  spare = DeviceMemory();
  KVMIX_ASSIGN_OR_RETURN(
      DeviceMemory memory,
      DeviceMemory::Allocate(count.bytes(),
                             absl::StrCat("the KV cache of layer ", layer)));
  // Blocks are copied whole, with what nobody has written yet.
  KVMIX_RETURN_IF_ERROR(
      CudaStatus(cudaMemsetAsync(memory.data(), 0,
                                 static_cast<size_t>(memory.bytes()), stream),
                 "clear new memory of the KV cache"));
  return memory;
}

absl::Status CudaKvCache::State::UploadPlaces(int layer, int sequence,
                                              cudaStream_t stream) {
  for (Side side : {Side::kKey, Side::kValue}) {
    const int64_t first = PlaceIndex(layer, side, sequence, 0);
    KVMIX_RETURN_IF_ERROR(Copy(device_places + first, places.data() + first,
                               shape.num_kv_heads * sizeof(CudaPlace),
                               cudaMemcpyHostToDevice, stream));
  }
  return absl::OkStatus();
}

absl::Status CudaKvCache::State::Compact(int layer, int item,
                                         const std::vector<TokenList>& dropped,
                                         cudaStream_t stream) {
  const int G = shape.num_kv_heads, sequence = chunk.parts[item].sequence;
  Evicting& own = at(layer, sequence);
  std::vector<CudaCompaction> streams;
  for (Side side : {Side::kKey, Side::kValue})
    for (int h = 0; h < G; ++h) {
      KVMIX_ASSIGN_OR_RETURN(CudaCompaction compaction,
                             CompactionOf(layer, side, item, h, dropped[h]));
      streams.push_back(compaction);
    }
  // Where the tokens come from, in rows of equal length.
  std::vector<std::vector<int>> kept_of;
  std::vector<int64_t> room;
  int64_t stride = 0;
  for (int h = 0; h < G; ++h) {
    kept_of.push_back(Kept(Stored(layer, sequence, h), dropped[h]));
    const auto left = static_cast<int64_t>(kept_of[h].size());
    room.push_back(std::min(left + kRoom, options.max_tokens));
    stride = std::max(stride, left);
  }
  std::vector<int> all(G * stride);
  for (int h = 0; h < G; ++h)
    std::copy(kept_of[h].begin(), kept_of[h].end(), all.begin() + h * stride);

  KVMIX_ASSIGN_OR_RETURN(DeviceMemory memory, NewStreams(layer, room, stream));
  DeviceArena arena(memory.data());
  const std::vector<CudaPlace> to = LayOutStreams(layer, room, arena);
  for (int i = 0; i < 2 * G; ++i) {
    streams[i].to = to[i];
    if (i < G && signals().received)
      streams[i].received = Received(layer, item, i);
  }
  KVMIX_RETURN_IF_ERROR(Copy(kept, all.data(), all.size() * sizeof(int),
                             cudaMemcpyHostToDevice, stream));
  KVMIX_RETURN_IF_ERROR(Copy(compactions, streams.data(),
                             streams.size() * sizeof(CudaCompaction),
                             cudaMemcpyHostToDevice, stream));
  CudaLayer params = layers[layer].params;
  params.num_items = chunk.num_items();
  KVMIX_RETURN_IF_ERROR(
      CudaStatus(CudaCompact(params, item, compactions, kept,
                             static_cast<int>(stride), stream),
                 "take tokens out of the KV cache"));

  SetPlaces(layer, sequence, to);
  KVMIX_RETURN_IF_ERROR(UploadPlaces(layer, sequence, stream));
  spare = std::exchange(own.memory, std::move(memory));
  own.room = std::move(room);
  for (int h = 0; h < G; ++h) {
    std::vector<int64_t> positions;
    for (const int t : kept_of[h]) positions.push_back(own.positions[h][t]);
    own.positions[h] = std::move(positions);
    for (Side side : {Side::kKey, Side::kValue})
      packed[layers[layer].kind(side)][sequence * G + h] =
          streams[(side == Side::kKey ? 0 : G) + h].packed;
  }
  return absl::OkStatus();
}

}  // namespace kvmix
