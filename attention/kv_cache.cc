#include "attention/kv_cache.h"

#include <cmath>
#include <map>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/cache_memory.h"
#include "attention/kv_cache_layer.h"
#include "kvmix/base/check.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"

namespace kvmix {
namespace {

// Numbers from here on round to infinity in half.
constexpr float kHalfOverflow = 65520.0f;

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

// x: [T, G, D]
absl::Status ValidateFitsHalf(const CacheShape& shape, int64_t num_tokens,
                              const float* x) {
  const int64_t size = num_tokens * shape.num_kv_heads * shape.head_dim;
  for (int64_t i = 0; i < size; ++i) {
    if (std::fabs(x[i]) < kHalfOverflow) continue;  // NaN is not
    const int64_t row = i / shape.head_dim;
    return absl::DataLossError(absl::StrCat(
        "token ", row / shape.num_kv_heads, " of the chunk, KV head ",
        row % shape.num_kv_heads, ", channel ", i % shape.head_dim, " is ",
        x[i], " but must be finite and in the range of half, +-65504"));
  }
  return absl::OkStatus();
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
  State(const CacheShape& shape, std::shared_ptr<const RecencyPolicy> recency,
        std::shared_ptr<const EvictionPolicy> eviction,
        std::pmr::memory_resource* memory)
      : shape(shape),
        recency(std::move(recency)),
        eviction(std::move(eviction)),
        layers(memory != nullptr ? memory : &own_memory) {}

  // The codec of `format`, null for 16 bits; made once per format and side.
  absl::StatusOr<const BlockCodec*> CodecOf(const QuantFormat& format,
                                            Side side);
  // `codec`, if the recency policy can serve it.
  absl::StatusOr<const BlockCodec*> Validated(const BlockCodec* codec,
                                              Side side, int bits) const;
  absl::Status AddLayer(int index, const LayerPlan& plan);
  // Of the chunk that is open in `layer`.
  bool QuantizesBeforeAttention(const Layer& layer) const {
    return layer.open_chunk == 1 &&
           recency->flush_order() == FlushOrder::kBeforeAttention;
  }
  void AppendTokens(Layer& layer, int64_t num_tokens, const float* keys,
                    const float* values) const;
  absl::Status Quantize(KvStream& stream, Side side, int bits) const;
  absl::Status QuantizeLayer(int index);
  absl::Status AskEviction(int index) const;

  struct Bits {
    int key, value;
  };

  const CacheShape shape;
  const std::shared_ptr<const RecencyPolicy> recency;
  const std::shared_ptr<const EvictionPolicy> eviction;
  std::map<std::pair<Side, std::string>, std::unique_ptr<BlockCodec>> codecs;
  std::vector<Bits> bits;  // [L]
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
  return codec.get();
}

absl::StatusOr<const BlockCodec*> KvCache::State::Validated(
    const BlockCodec* codec, Side side, int bits) const {
  if (codec == nullptr) return codec;
  KVMIX_RETURN_IF_ERROR(recency->Validate(
      {.side = side, .bits = bits, .granularity = codec->granularity()}));
  return codec;
}

absl::Status KvCache::State::AddLayer(int index, const LayerPlan& plan) {
  std::pmr::memory_resource* memory = layers.get_allocator().resource();
  Layer& layer = layers.emplace_back(memory);
  bits.push_back({plan.key().bits(), plan.value().bits()});
  for (Side side : {Side::kKey, Side::kValue}) {
    const QuantFormat& format = side == Side::kKey ? plan.key() : plan.value();
    absl::StatusOr<const BlockCodec*> codec = CodecOf(format, side);
    if (codec.ok()) codec = Validated(*codec, side, format.bits());
    if (!codec.ok()) return AddContext(codec.status(), Place(index, side));
    auto& streams = side == Side::kKey ? layer.keys : layer.values;
    streams.reserve(shape.num_kv_heads);
    for (int head = 0; head < shape.num_kv_heads; ++head)
      streams.emplace_back(side, *codec, shape.head_dim, recency->sink_tokens(),
                           memory);
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

absl::Status KvCache::State::Quantize(KvStream& stream, Side side,
                                      int bits) const {
  if (stream.codec() == nullptr) return absl::OkStatus();
  const WindowState window{.side = side,
                           .bits = bits,
                           .granularity = stream.codec()->granularity(),
                           .window_tokens = stream.window_tokens()};
  const int64_t count = recency->TokensToQuantize(window);
  if (count < 0 || count > window.window_tokens ||
      count % window.granularity != 0)
    return absl::InternalError(
        absl::StrCat("the recency policy wants to quantize ", count,
                     " tokens of a window of ", window.window_tokens,
                     " with granularity ", window.granularity));
  stream.QuantizeOldest(count);
  return absl::OkStatus();
}

absl::Status KvCache::State::QuantizeLayer(int index) {
  Layer& layer = layers[index];
  for (KvStream& stream : layer.keys)
    KVMIX_RETURN_IF_ERROR(
        AddContext(Quantize(stream, Side::kKey, bits[index].key),
                   Place(index, Side::kKey)));
  for (KvStream& stream : layer.values)
    KVMIX_RETURN_IF_ERROR(
        AddContext(Quantize(stream, Side::kValue, bits[index].value),
                   Place(index, Side::kValue)));
  return absl::OkStatus();
}

absl::Status KvCache::State::AskEviction(int index) const {
  for (int head = 0; head < shape.num_kv_heads; ++head) {
    const EvictionState state{
        .layer = index,
        .kv_head = head,
        .num_tokens = layers[index].keys[head].num_tokens()};
    if (!eviction->TokensToDrop(state).empty())
      return absl::UnimplementedError(absl::StrCat(
          "layer ", index, ", KV head ", head,
          ": the eviction policy drops tokens, which this cache cannot do yet; "
          "use eviction_policy \"keep_all\""));
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
  auto state = std::make_unique<State>(shape, std::move(recency),
                                       std::move(eviction), memory);
  KVMIX_RETURN_IF_ERROR(CatchOutOfMemory("new cache", [&] {
    state->layers.reserve(shape.num_layers);
    absl::Status status;
    for (int i = 0; i < shape.num_layers && status.ok(); ++i)
      status = state->AddLayer(i, plan.layer(i));
    return status;
  }));
  return std::unique_ptr<KvCache>(new KvCache(std::move(state)));
}

const CacheShape& KvCache::shape() const { return state_->shape; }

int64_t KvCache::num_tokens(int layer) const {
  return this->layer(layer).keys[0].num_tokens();
}

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
  KVMIX_RETURN_IF_ERROR(AddContext(ValidateFitsHalf(shape, num_tokens, keys),
                                   Place(index, Side::kKey)));
  KVMIX_RETURN_IF_ERROR(AddContext(ValidateFitsHalf(shape, num_tokens, values),
                                   Place(index, Side::kValue)));
  layer.open_chunk = num_tokens;
  return CatchOutOfMemory(absl::StrCat("layer ", index), [&] {
    state_->AppendTokens(layer, num_tokens, keys, values);
    if (!state_->QuantizesBeforeAttention(layer)) return absl::OkStatus();
    return state_->QuantizeLayer(index);
  });
}

absl::Status KvCache::FinishChunk(int index) {
  KVMIX_CHECK(index >= 0 && index < state_->shape.num_layers);
  Layer& layer = state_->layers[index];
  KVMIX_CHECK(layer.open_chunk != 0) << "FinishChunk without Append";
  if (!state_->QuantizesBeforeAttention(layer)) {
    KVMIX_RETURN_IF_ERROR(CatchOutOfMemory(absl::StrCat("layer ", index), [&] {
      return state_->QuantizeLayer(index);
    }));
  }
  KVMIX_RETURN_IF_ERROR(state_->AskEviction(index));
  layer.open_chunk = 0;
  return absl::OkStatus();
}

MemoryLedger KvCache::ledger() const {
  MemoryLedger ledger;
  ledger.bookkeeping = state_->layers.capacity() * sizeof(Layer);
  for (const Layer& layer : state_->layers) {
    ledger.bookkeeping +=
        (layer.keys.capacity() + layer.values.capacity()) * sizeof(KvStream);
    for (const KvStream& stream : layer.keys)
      ledger.bookkeeping += stream.AddTo(ledger.key);
    for (const KvStream& stream : layer.values)
      ledger.bookkeeping += stream.AddTo(ledger.value);
  }
  return ledger;
}

}  // namespace kvmix
