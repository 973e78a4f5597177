// Quantizer: a registered scheme that turns blocks of keys or values into
// packed bytes and back.
//
// Two steps, because a plan must be readable without the config that made it:
// FormatFor answers which QuantFormat the scheme uses for a number of bits (an
// allocator asks for its effective bits); MakeCodec answers with the code that
// reads and writes a QuantFormat.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "quant/lane_block.h"
#include "quant/quant_format.pb.h"

namespace kvmix {

enum class Side { kKey, kValue };
inline const char* SideName(Side side) {
  return side == Side::kKey ? "keys" : "values";
}

// Bytes of one full packed block, by cause.
struct BlockBytes {
  int64_t codes = 0;
  int64_t scales = 0;
  int64_t zeros = 0;
  // What else the codes need to be read: codebooks, outliers, low-rank factors,
  // lists of channels.
  int64_t side_data = 0;
  int64_t total() const { return codes + scales + zeros + side_data; }
};

// Packs tokens of one KV head, of one side. D = head_dim. A block has room for
// block_tokens() tokens and is written in multiples of granularity() tokens,
// oldest first: a per-channel format at once (granularity == block_tokens), a
// per-token format token by token (granularity 1). What is written never
// depends on how the tokens arrived. `first` and `count` below are multiples of
// granularity(). Thread-safe.
//
// Numbers are shown as attention reads them:
//   keys     x [D, stride], token first + t in column t, stride >= count
//   values   x [count, stride], token first + t in row t, stride >= D
class BlockCodec {
 public:
  virtual ~BlockCodec() = default;
  virtual int block_tokens() const = 0;
  virtual int granularity() const = 0;
  virtual BlockBytes bytes() const = 0;
  // Quantizes x into tokens [first, first + count) of `block`: bytes().total()
  // bytes, 4-byte aligned, 0 where nothing has been written.
  virtual void Encode(const float* x, int64_t stride, int first, int count,
                      uint8_t* block) const = 0;
  // x = tokens [first, first + count) of `block`.
  virtual void Decode(const uint8_t* block, int first, int count, float* x,
                      int64_t stride) const = 0;
  // How codes lie, if attention's kernels can compute with them in place; null:
  // attention decodes a block before it reads it.
  virtual const LaneBlock* lane_block() const { return nullptr; }
  virtual const ElevenBlock* eleven_block() const { return nullptr; }
  // True: the numbers are keys before RoPE. Whoever stores keys turns them back
  // before Encode and anew after Decode (kvmix/key_rotation.h).
  virtual bool pre_rope() const { return false; }
  // Bits an element takes, all bytes of the block included.
  double effective_bits(int head_dim) const {
    return 8.0 * bytes().total() /
           (static_cast<double>(block_tokens()) * head_dim);
  }
};

class Quantizer {
 public:
  virtual ~Quantizer() = default;
  // Errors: bits that the scheme does not offer for this side and head_dim. 16
  // gives the unquantized format.
  virtual absl::StatusOr<QuantFormat> FormatFor(Side side, int bits,
                                                int head_dim) const = 0;
  // Errors: a format of another scheme, or one that head_dim or the rules of
  // the scheme do not allow.
  virtual absl::StatusOr<std::unique_ptr<BlockCodec>> MakeCodec(
      const QuantFormat& format, Side side, int head_dim) const = 0;

  // True: the format gets better when it knows the queries that will meet the
  // keys; Calibrated tells it. Errors: as MakeCodec.
  virtual absl::StatusOr<bool> WantsQueryEnergy(
      const QuantFormat& /*format*/) const {
    return false;
  }
  // The same format, of the same bytes, where an error in each channel of what
  // its codec encodes weighs so much, [D], relative to each other
  // (kvmix/importance/query_energy.h). Errors: as MakeCodec.
  virtual absl::StatusOr<QuantFormat> Calibrated(
      const QuantFormat& format, absl::Span<const float> query_energy) const {
    (void)query_energy;
    return format;
  }
};

// The quantizer that a format names, without options of its own.
absl::StatusOr<std::unique_ptr<Quantizer>> QuantizerOf(
    const QuantFormat& format);

// The codec of any format whose quantizer is linked. Must not be called for
// bits == 16.
absl::StatusOr<std::unique_ptr<BlockCodec>> MakeBlockCodec(
    const QuantFormat& format, Side side, int head_dim);

}  // namespace kvmix
