// GroupCodec: the part that all group-wise codecs of plain strings of bits
// share: which numbers of a block make a group, and in which order groups come.
//
//   PER_CHANNEL  a block is one group of tokens, written at once; group c is
//                channel c
//   PER_TOKEN    a block is 32 tokens, written one by one; group
//                t * (D / size) + j is channels [j, j + 1) * size of token t
//
// A scheme says how long its groups are in bytes and how n of them are written
// and read.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "quant/quantizer.h"

namespace kvmix {

inline constexpr int kPerTokenBlockTokens = 32;

// `format` names `quantizer`. Errors name the field quantizer.
absl::Status CheckScheme(const QuantFormat& format,
                         const std::string& quantizer);

// What all formats of groups must satisfy: the scheme's name, head_dim a
// multiple of 8, bits in [min_bits, max_bits], a known axis, a group_size that
// divides head_dim where groups run along it.
absl::Status ValidateGroupFormat(const QuantFormat& format,
                                 const std::string& quantizer, int min_bits,
                                 int max_bits, int head_dim);

// Aborts unless tokens [first, first + count) are whole granules of a block.
void CheckRange(const BlockCodec& codec, int first, int count);

// out [columns, out_stride] = in [rows, in_stride]^T
void Transpose(const float* in, int rows, int columns, int64_t in_stride,
               float* out, int64_t out_stride);

class GroupCodec : public BlockCodec {
 public:
  // `format` is valid for head_dim. at_once: PER_TOKEN blocks are written whole
  // as well.
  GroupCodec(const QuantFormat& format, Side side, int head_dim,
             bool at_once = false);

  int block_tokens() const final {
    return per_channel_ ? group_size_ : kPerTokenBlockTokens;
  }
  int granularity() const final {
    return per_channel_ || at_once_ ? block_tokens() : 1;
  }
  void Encode(const float* x, int64_t stride, int first, int count,
              uint8_t* block) const final;
  void Decode(const uint8_t* block, int first, int count, float* x,
              int64_t stride) const final;

 protected:
  // x [n, group_size] -> groups [first, first + n) of the block.
  virtual void WriteGroups(const float* x, int first, int n,
                           uint8_t* block) const = 0;
  // The other way; group i goes to x + i * stride.
  virtual void ReadGroups(const uint8_t* block, int first, int n, float* x,
                          int64_t stride) const = 0;
  int group_size() const { return group_size_; }
  int num_groups() const { return NumGroups(block_tokens()); }

 private:
  int NumGroups(int count) const {
    return per_channel_ ? head_dim_ : count * groups_per_token_;
  }

  const bool keys_, per_channel_, at_once_;
  const int head_dim_, group_size_;
  const int groups_per_token_;
};

}  // namespace kvmix
