#include "attention/kv_cache.h"

#include <cmath>
#include <limits>
#include <map>
#include <new>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/cache_memory.h"
#include "attention/kv_cache_layer.h"
#include "attention/recency_step.h"
#include "attention/token_eviction.h"
#include "kvmix/base/check.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"
#include "kvmix/cache_plan.h"

namespace kvmix {
namespace {

// Numbers from here on round to infinity.
float OverflowOf(NumberType type) {
  switch (type) {
    case NumberType::kHalf:
      return 65520.0f;
    case NumberType::kBFloat16:
      return 0x1.ffp127f;
    case NumberType::kFloat:
      break;
  }
  return std::numeric_limits<float>::infinity();
}

std::string Place(int layer, Side side) {
  return absl::StrCat("layer ", layer, " ", SideName(side));
}

absl::Status ValidateShape(const CacheShape& shape) {
  KVMIX_RETURN_IF_ERROR(
      ValidateIsPositive(shape.num_layers, "cache shape num_layers"));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsPositive(shape.num_kv_heads, "cache shape num_kv_heads"));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(shape.head_dim, 8, 4096, "cache shape head_dim"));
  if (shape.head_dim % 8 != 0)
    return absl::InvalidArgumentError(
        absl::StrCat("cache shape head_dim is ", shape.head_dim,
                     " but must be a multiple of 8"));
  return absl::OkStatus();
}

// What numbers of a layer's keys (or values) must fit. Scales and zero points
// are halves.
NumberType RangeOf(const std::pmr::vector<KvStream>& streams) {
  for (const KvStream& stream : streams)
    if (stream.packs()) return NumberType::kHalf;
  return streams.front().full_precision();
}

// x: [T, G, D]
absl::Status ValidateFits(NumberType type, const CacheShape& shape,
                          int64_t num_tokens, const float* x) {
  const float overflow = OverflowOf(type);
  const int64_t size = num_tokens * shape.num_kv_heads * shape.head_dim;
  for (int64_t i = 0; i < size; ++i) {
    if (std::fabs(x[i]) < overflow) continue;  // NaN is not
    const int64_t row = i / shape.head_dim;
    return absl::DataLossError(absl::StrCat(
        "token ", row / shape.num_kv_heads, " of the chunk, KV head ",
        row % shape.num_kv_heads, ", channel ", i % shape.head_dim, " is ",
        x[i], " but must be finite and in the range of ", NameOf(type),
        type == NumberType::kHalf
            ? ", +-65504; tokens that are not packed can have a larger one, by "
              "full_precision: BFLOAT16"
            : ""));
  }
  return absl::OkStatus();
}

absl::StatusOr<NumberType> NumberTypeOf(const CachePlan& plan) {
  switch (plan.full_precision()) {
    case CachePlan::HALF:
      return NumberType::kHalf;
    case CachePlan::BFLOAT16:
      return NumberType::kBFloat16;
    case CachePlan::FLOAT:
      return NumberType::kFloat;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("full_precision is ", plan.full_precision(),
                       " but must be HALF, BFLOAT16 or FLOAT"));
  }
}

// What `memory` throws becomes a status.
template <typename Body>
absl::Status CatchOutOfMemory(const std::string& place, const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        absl::StrCat(place, ": the memory of the KV cache is exhausted"));
  }
}

}  // namespace

struct KvCache::State {
  State(const CacheShape& shape, NumberType full_precision,
        std::shared_ptr<const RecencyPolicy> recency,
        std::shared_ptr<const EvictionPolicy> eviction,
        std::pmr::memory_resource* memory)
      : shape(shape),
        full_precision(full_precision),
        recency(std::move(recency)),
        eviction(std::move(eviction)),
        layers(memory != nullptr ? memory : &own_memory) {}

  // The codec of `format`, null for 16 bits; made once per format and side.
  absl::StatusOr<const BlockCodec*> CodecOf(const QuantFormat& format,
                                            Side side);
  // `format` is of keys before RoPE, which needs the position of every token.
  absl::Status CheckKnowsPositions(const QuantFormat& format) const;
  // What the policies say of formats.
  absl::Status ReadPolicies();
  // Those of a stream, if the recency policy can serve them; window_bits are of
  // the format that tokens leave the window into.
  absl::StatusOr<KvStream::Formats> FormatsOf(const QuantFormat& format,
                                              Side side, int* window_bits);
  absl::Status AddLayer(int index, const LayerPlan& plan);
  absl::Status AddStreams(Side side, const LayerPlan& plan, Layer& layer);
  // Of the chunk that is open in `layer`.
  bool QuantizesBeforeAttention(const Layer& layer) const {
    return kvmix::QuantizesBeforeAttention(*recency, layer.open_chunk);
  }
  void AppendTokens(Layer& layer, int64_t num_tokens, const float* keys,
                    const float* values) const;
  absl::Status Quantize(KvStream& stream, int bits) const;
  absl::Status QuantizeLayer(int index);
  // Packed tokens pass on to formats for older ones.
  void AgeTokens(KvStream& stream) const;
  EvictionContext Eviction(int index) {
    return {.policy = *eviction,
            .shape = shape,
            .layer_index = index,
            .multiple = eviction_multiple,
            .demotes = demoted[0] != nullptr,
            .layer = layers[index]};
  }

  const CacheShape shape;
  const NumberType full_precision;
  const std::shared_ptr<const RecencyPolicy> recency;
  const std::shared_ptr<const EvictionPolicy> eviction;
  std::map<std::pair<Side, std::string>, std::unique_ptr<BlockCodec>> codecs;
  // By side, keys first.
  // Of what tokens leave windows into, [L * G].
  std::vector<int> window_bits[2];
  std::vector<AgeTier> tiers[2];
  const BlockCodec* demoted[2] = {};  // null: the policy drops tokens
  int64_t eviction_multiple = 1;
  CacheMemory own_memory;  // if no other was given; outlives the layers
  std::pmr::vector<Layer> layers;
};

absl::StatusOr<const BlockCodec*> KvCache::State::CodecOf(
    const QuantFormat& format, Side side) {
  if (format.bits() == 0)
    return absl::InvalidArgumentError(
        "the plan has no format; bits must be what a quantizer offers, or 16");
  if (format.bits() == 16) {
    QuantFormat unquantized;
    unquantized.set_bits(16);
    if (format.SerializeAsString() != unquantized.SerializeAsString())
      return absl::InvalidArgumentError(
          "bits is 16, not quantized, so that no other field may be set");
    return nullptr;
  }
  std::unique_ptr<BlockCodec>& codec =
      codecs[{side, format.SerializeAsString()}];
  if (codec == nullptr) {
    KVMIX_ASSIGN_OR_RETURN(codec, MakeBlockCodec(format, side, shape.head_dim));
  }
  if (codec->pre_rope()) KVMIX_RETURN_IF_ERROR(CheckKnowsPositions(format));
  return codec.get();
}

absl::Status KvCache::State::CheckKnowsPositions(
    const QuantFormat& format) const {
  if (shape.key_rotation == nullptr)
    return absl::InvalidArgumentError(absl::StrCat(
        "quantizer \"", format.quantizer(),
        "\" stores keys before RoPE, but the cache does not know the model's "
        "RoPE (CacheShape::key_rotation); use its inner quantizer"));
  if (eviction->evicts())
    return absl::InvalidArgumentError(absl::StrCat(
        "quantizer \"", format.quantizer(),
        "\" stores keys before RoPE and takes a token's place in the cache "
        "for its position, which an eviction policy changes; use "
        "eviction_policy \"keep_all\", or its inner quantizer"));
  return absl::OkStatus();
}

absl::Status KvCache::State::ReadPolicies() {
  for (Side side : {Side::kKey, Side::kValue}) {
    const int i = side == Side::kKey ? 0 : 1;
    KVMIX_ASSIGN_OR_RETURN(tiers[i], recency->Tiers(side, shape.head_dim));
    KVMIX_ASSIGN_OR_RETURN(const QuantFormat format,
                           eviction->DemotionFormat(side, shape.head_dim));
    if (format.bits() == 0) continue;
    KVMIX_ASSIGN_OR_RETURN(demoted[i], CodecOf(format, side));
    eviction_multiple =
        std::lcm(eviction_multiple, int64_t{demoted[i]->granularity()});
  }
  KVMIX_CHECK((demoted[0] == nullptr) == (demoted[1] == nullptr));
  return absl::OkStatus();
}

absl::StatusOr<KvStream::Formats> KvCache::State::FormatsOf(
    const QuantFormat& format, Side side, int* window_bits) {
  const int i = side == Side::kKey ? 0 : 1;
  KvStream::Formats formats{.demoted = demoted[i],
                            .by_age = {},
                            .rotation = shape.key_rotation.get()};
  KVMIX_ASSIGN_OR_RETURN(const BlockCodec* const codec, CodecOf(format, side));
  *window_bits = format.bits();
  if (codec == nullptr) return formats;
  formats.by_age.push_back(codec);
  for (auto tier = tiers[i].rbegin(); tier != tiers[i].rend(); ++tier) {
    KVMIX_ASSIGN_OR_RETURN(const BlockCodec* const young,
                           CodecOf(tier->format, side));
    KVMIX_CHECK(young != nullptr);
    formats.by_age.push_back(young);
    *window_bits = tier->format.bits();
  }
  KVMIX_RETURN_IF_ERROR(
      recency->Validate({.side = side,
                         .bits = *window_bits,
                         .granularity = formats.by_age.back()->granularity()}));
  return formats;
}

absl::Status KvCache::State::AddStreams(Side side, const LayerPlan& plan,
                                        Layer& layer) {
  auto& streams = side == Side::kKey ? layer.keys : layer.values;
  streams.reserve(shape.num_kv_heads);
  for (int head = 0; head < shape.num_kv_heads; ++head) {
    int& bits = window_bits[side == Side::kKey ? 0 : 1].emplace_back();
    const absl::StatusOr<KvStream::Formats> formats =
        FormatsOf(FormatOfHead(plan, side, head), side, &bits);
    if (!formats.ok()) {
      return HasHeadFormats(plan, side)
                 ? AddContext(formats.status(), absl::StrCat("head ", head))
                 : formats.status();
    }
    streams.emplace_back(side, *formats, shape.head_dim, recency->sink_tokens(),
                         layers.get_allocator().resource(), full_precision);
  }
  return absl::OkStatus();
}

absl::Status KvCache::State::AddLayer(int index, const LayerPlan& plan) {
  std::pmr::memory_resource* memory = layers.get_allocator().resource();
  Layer& layer = layers.emplace_back(memory);
  for (Side side : {Side::kKey, Side::kValue}) {
    KVMIX_RETURN_IF_ERROR(
        AddContext(AddStreams(side, plan, layer), Place(index, side)));
  }
  if (eviction->evicts()) {
    layer.heads.reserve(shape.num_kv_heads);
    for (int head = 0; head < shape.num_kv_heads; ++head)
      layer.heads.emplace_back(memory);
  }
  return absl::OkStatus();
}

void KvCache::State::AppendTokens(Layer& layer, int64_t num_tokens,
                                  const float* keys,
                                  const float* values) const {
  const int64_t stride = int64_t{shape.num_kv_heads} * shape.head_dim;
  for (int head = 0; head < shape.num_kv_heads; ++head) {
    const int64_t first = int64_t{head} * shape.head_dim;
    layer.keys[head].Append(keys + first, stride, num_tokens);
    layer.values[head].Append(values + first, stride, num_tokens);
  }
}

absl::Status KvCache::State::Quantize(KvStream& stream, int bits) const {
  if (stream.codec() == nullptr) return absl::OkStatus();
  const WindowState window{.side = stream.side(),
                           .bits = bits,
                           .granularity = stream.codec()->granularity(),
                           .window_tokens = stream.window_tokens(),
                           .packed_tokens = stream.packed_tokens()};
  KVMIX_ASSIGN_OR_RETURN(const int64_t count, TokensLeaving(*recency, window));
  stream.QuantizeOldest(count);
  AgeTokens(stream);
  return absl::OkStatus();
}

void KvCache::State::AgeTokens(KvStream& stream) const {
  const std::vector<AgeTier>& young =
      tiers[stream.side() == Side::kKey ? 0 : 1];
  for (int run = stream.num_age_runs() - 1; run > 0; --run) {
    const int64_t room = young[stream.num_age_runs() - 1 - run].tokens;
    const int64_t excess = std::max<int64_t>(0, stream.age_tokens(run) - room);
    stream.Age(run, excess - excess % stream.AgingStep(run));
  }
}

absl::Status KvCache::State::QuantizeLayer(int index) {
  Layer& layer = layers[index];
  for (Side side : {Side::kKey, Side::kValue}) {
    const bool key = side == Side::kKey;
    const int* bits =
        window_bits[key ? 0 : 1].data() + int64_t{index} * shape.num_kv_heads;
    for (KvStream& stream : key ? layer.keys : layer.values) {
      KVMIX_RETURN_IF_ERROR(
          AddContext(Quantize(stream, *bits++), Place(index, side)));
    }
  }
  return absl::OkStatus();
}

KvCache::KvCache(std::unique_ptr<State> state) : state_(std::move(state)) {}
KvCache::~KvCache() = default;

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(
    const CacheShape& shape, const CachePlan& plan,
    std::shared_ptr<const RecencyPolicy> recency,
    std::shared_ptr<const EvictionPolicy> eviction,
    std::pmr::memory_resource* memory) {
  KVMIX_CHECK(recency != nullptr && eviction != nullptr);
  KVMIX_RETURN_IF_ERROR(ValidateShape(shape));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsNonNegative(recency->sink_tokens(), "sink_tokens"));
  if (plan.layer_size() != shape.num_layers)
    return absl::InvalidArgumentError(
        absl::StrCat("the cache plan has ", plan.layer_size(),
                     " layers but the model has ", shape.num_layers));
  KVMIX_RETURN_IF_ERROR(CheckHeads(plan, shape.num_kv_heads));
  KVMIX_ASSIGN_OR_RETURN(const NumberType full_precision, NumberTypeOf(plan));
  auto state = std::make_unique<State>(
      shape, full_precision, std::move(recency), std::move(eviction), memory);
  KVMIX_RETURN_IF_ERROR(CatchOutOfMemory("new cache", [&] {
    state->layers.reserve(shape.num_layers);
    absl::Status status = state->ReadPolicies();
    for (int i = 0; i < shape.num_layers && status.ok(); ++i)
      status = state->AddLayer(i, plan.layer(i));
    return status;
  }));
  return std::unique_ptr<KvCache>(new KvCache(std::move(state)));
}

const CacheShape& KvCache::shape() const { return state_->shape; }

int64_t KvCache::num_tokens(int layer) const {
  return this->layer(layer).tokens_seen;
}

bool KvCache::keeps_all_tokens() const { return !state_->eviction->evicts(); }

const KvCache::Layer& KvCache::layer(int index) const {
  KVMIX_CHECK(index >= 0 && index < state_->shape.num_layers);
  return state_->layers[index];
}

absl::Status KvCache::Append(int index, int64_t num_tokens, const float* keys,
                             const float* values) {
  KVMIX_CHECK(index >= 0 && index < state_->shape.num_layers);
  KVMIX_CHECK(num_tokens > 0);
  const CacheShape& shape = state_->shape;
  Layer& layer = state_->layers[index];
  if (layer.open_chunk != 0)
    return absl::FailedPreconditionError(
        absl::StrCat("layer ", index,
                     ": the last chunk is not finished; after a failed "
                     "pass a sequence needs a new cache"));
  KVMIX_RETURN_IF_ERROR(
      AddContext(ValidateFits(RangeOf(layer.keys), shape, num_tokens, keys),
                 Place(index, Side::kKey)));
  KVMIX_RETURN_IF_ERROR(
      AddContext(ValidateFits(RangeOf(layer.values), shape, num_tokens, values),
                 Place(index, Side::kValue)));
  layer.open_chunk = num_tokens;
  return CatchOutOfMemory(absl::StrCat("layer ", index), [&] {
    state_->AppendTokens(layer, num_tokens, keys, values);
    RecordAppended(state_->Eviction(index), num_tokens);
    if (!state_->QuantizesBeforeAttention(layer)) return absl::OkStatus();
    return state_->QuantizeLayer(index);
  });
}

absl::Status KvCache::Observe(int index, const float* queries, int num_heads,
                              float scale) {
  KVMIX_CHECK(index >= 0 && index < state_->shape.num_layers);
  KVMIX_CHECK(state_->layers[index].open_chunk != 0)
      << "Observe without Append";
  if (keeps_all_tokens()) return absl::OkStatus();
  return CatchOutOfMemory(absl::StrCat("layer ", index), [&] {
    RecordQueries(state_->Eviction(index), queries, num_heads, scale);
    return absl::OkStatus();
  });
}

absl::Status KvCache::FinishChunk(int index) {
  KVMIX_CHECK(index >= 0 && index < state_->shape.num_layers);
  Layer& layer = state_->layers[index];
  KVMIX_CHECK(layer.open_chunk != 0) << "FinishChunk without Append";
  KVMIX_RETURN_IF_ERROR(CatchOutOfMemory(absl::StrCat("layer ", index), [&] {
    if (!keeps_all_tokens())
      KVMIX_RETURN_IF_ERROR(Evict(state_->Eviction(index)));
    return state_->QuantizesBeforeAttention(layer)
               ? absl::OkStatus()
               : state_->QuantizeLayer(index);
  }));
  layer.open_chunk = 0;
  return absl::OkStatus();
}

MemoryLedger KvCache::ledger() const {
  MemoryLedger ledger;
  ledger.bookkeeping = state_->layers.capacity() * sizeof(Layer);
  for (const Layer& layer : state_->layers) {
    ledger.bookkeeping +=
        (layer.keys.capacity() + layer.values.capacity()) * sizeof(KvStream);
    ledger.bookkeeping += layer.heads.capacity() * sizeof(Layer::HeadRecord) +
                          layer.recent_queries.capacity() * sizeof(float);
    for (const Layer::HeadRecord& head : layer.heads)
      ledger.bookkeeping += head.positions.capacity() * sizeof(int64_t) +
                            head.received.capacity() * sizeof(float);
    for (const KvStream& stream : layer.keys)
      ledger.bookkeeping += stream.AddTo(ledger.key);
    for (const KvStream& stream : layer.values)
      ledger.bookkeeping += stream.AddTo(ledger.value);
  }
  return ledger;
}

}  // namespace kvmix
