#include "kvmix/importance/state_quantizer.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kvmix/base/check.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/key_rotation.h"

namespace kvmix {
namespace {

// Tokens [first, first + count) of a head, between [T, G, D], where a token's
// states lie `row` apart, and the order of BlockCodec.
struct Span {
  Side side;
  int64_t first;
  int64_t count;
  int head_dim;
  int64_t row;
  int64_t stride() const { return side == Side::kKey ? count : head_dim; }
  int64_t At(int64_t token, int d) const {
    return side == Side::kKey ? d * stride() + token : token * stride() + d;
  }
};

// error = decoded - x for one block's tokens of one head. `rotation` is that of
// keys.
void BlockError(const BlockCodec& codec, const KeyRotation* rotation,
                const Span& span, const float* x, float* error) {
  const size_t size = static_cast<size_t>(span.count) * span.head_dim;
  std::vector<float> block_x(size), read(size);
  for (int64_t t = 0; t < span.count; ++t) {
    for (int d = 0; d < span.head_dim; ++d)
      block_x[span.At(t, d)] = x[t * span.row + d];
  }
  // 4-byte aligned and zero, as in a cache.
  std::vector<uint32_t> words(codec.bytes().total() / 4 + 1);
  auto* block = reinterpret_cast<uint8_t*>(words.data());
  const int count = static_cast<int>(span.count);
  if (codec.pre_rope())
    rotation->Unrotate(span.first, count, block_x.data(), span.stride());
  codec.Encode(block_x.data(), span.stride(), 0, count, block);
  codec.Decode(block, 0, count, read.data(), span.stride());
  if (codec.pre_rope())
    rotation->Rotate(span.first, count, read.data(), span.stride());
  for (int64_t t = 0; t < span.count; ++t) {
    for (int d = 0; d < span.head_dim; ++d)
      error[t * span.row + d] = read[span.At(t, d)] - x[t * span.row + d];
  }
}

}  // namespace

absl::StatusOr<StateQuantizer> StateQuantizer::Make(
    const FormatChoices& formats, int head_dim) {
  StateQuantizer quantizer;
  for (const Side side : {Side::kKey, Side::kValue}) {
    const bool key = side == Side::kKey;
    for (const QuantFormat& format : key ? formats.key() : formats.value()) {
      Codecs& codecs = key ? quantizer.key_ : quantizer.value_;
      if (format.bits() == 16) {
        codecs.push_back(nullptr);
        continue;
      }
      absl::StatusOr<std::unique_ptr<BlockCodec>> codec =
          MakeBlockCodec(format, side, head_dim);
      if (!codec.ok()) {
        return AddContext(codec.status(),
                          absl::StrCat("a format of ", format.bits(),
                                       " bits for ", SideName(side)));
      }
      codecs.push_back(*std::move(codec));
    }
  }
  return quantizer;
}

std::vector<float> StateQuantizer::Error(Side side, int format,
                                         const LayerTrace& trace) const {
  const int64_t row = int64_t{trace.num_kv_heads} * trace.head_dim;
  std::vector<float> error(trace.num_tokens * row, 0.0f);
  const BlockCodec* codec = codecs(side)[format].get();
  if (codec == nullptr) return error;
  KVMIX_CHECK(!codec->pre_rope() || trace.key_rotation != nullptr);
  const float* x = side == Side::kKey ? trace.key_states : trace.value_states;
  const int64_t end =
      trace.num_tokens / codec->granularity() * codec->granularity();
  for (int head = 0; head < trace.num_kv_heads; ++head) {
    for (int64_t first = 0; first < end; first += codec->block_tokens()) {
      const int64_t at = first * row + int64_t{head} * trace.head_dim;
      BlockError(
          *codec, trace.key_rotation,
          {.side = side,
           .first = first,
           .count = std::min<int64_t>(codec->block_tokens(), end - first),
           .head_dim = trace.head_dim,
           .row = row},
          x + at, error.data() + at);
    }
  }
  return error;
}

}  // namespace kvmix
