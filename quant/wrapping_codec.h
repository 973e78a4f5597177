// What codecs that stand around another one share: the format of the inner one,
// and a copy of the tokens that may be changed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/base/component.pb.h"
#include "kvmix/base/status_macros.h"
#include "quant/group_codec.h"
#include "quant/quantizer.h"

namespace kvmix {

// The options that `format` carries.
template <typename Message>
absl::StatusOr<Message> OptionsOf(const QuantFormat& format) {
  Message message;
  if (format.options().UnpackTo(&message)) return message;
  return absl::InvalidArgumentError(
      absl::StrCat("options must be a ", Message::descriptor()->full_name(),
                   " with quantizer \"", format.quantizer(), "\""));
}

// The codec of `inner`, which `outer` holds in its options. Errors: as
// MakeBlockCodec; an inner codec of keys before RoPE.
absl::StatusOr<std::unique_ptr<BlockCodec>> MakeInnerCodec(
    const QuantFormat& outer, const QuantFormat& inner, Side side,
    int head_dim);

// A format of `quantizer` around `inner`, with the same nominal bits.
template <typename Message>
QuantFormat WrapFormat(const std::string& quantizer, const QuantFormat& inner,
                       const Message& options) {
  QuantFormat format;
  format.set_quantizer(quantizer);
  format.set_bits(inner.bits());
  format.mutable_options()->PackFrom(options);
  return format;
}

// Tokens side by side as BlockCodec shows them, without gaps: keys [D, count],
// values [count, D].
struct TokenTile {
  TokenTile(Side side, int head_dim, int count)
      : keys(side == Side::kKey),
        head_dim(head_dim),
        count(count),
        x(static_cast<size_t>(head_dim) * count) {}
  TokenTile(Side side, int head_dim, const float* from, int64_t from_stride,
            int count)
      : TokenTile(side, head_dim, count) {
    for (int64_t row = 0; row < rows(); ++row)
      std::copy_n(from + row * from_stride, stride(),
                  x.data() + row * stride());
  }
  int64_t rows() const { return keys ? head_dim : count; }
  int64_t stride() const { return keys ? count : head_dim; }
  float& at(int token, int channel) {
    return keys ? x[static_cast<size_t>(channel) * count + token]
                : x[static_cast<size_t>(token) * head_dim + channel];
  }

  const bool keys;
  const int head_dim, count;
  std::vector<float> x;
};

// Around `inner`, with the same blocks; what it adds to a block lies behind the
// inner one's bytes.
class WrappingCodec : public BlockCodec {
 public:
  WrappingCodec(std::unique_ptr<BlockCodec> inner, Side side, int head_dim)
      : inner_(std::move(inner)), side_(side), head_dim_(head_dim) {}
  int block_tokens() const override { return inner_->block_tokens(); }
  int granularity() const override { return inner_->granularity(); }
  BlockBytes bytes() const override { return inner_->bytes(); }

 protected:
  const BlockCodec& inner() const { return *inner_; }
  Side side() const { return side_; }
  int head_dim() const { return head_dim_; }

 private:
  const std::unique_ptr<BlockCodec> inner_;
  const Side side_;
  const int head_dim_;
};

// The quantizer that an options message names as its inner one; "group_affine"
// if it names none.
absl::StatusOr<std::unique_ptr<Quantizer>> MakeInnerQuantizer(
    const Component& component);

}  // namespace kvmix
