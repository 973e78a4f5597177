// Quantizer "group_affine": asymmetric min/max quantization in groups, keys or
// values along either axis. KVmix and KIVI store keys PER_CHANNEL, because
// their outliers sit in channels, and values PER_TOKEN.
//
// A block is 32 tokens, or the group's with PER_CHANNEL. Dense codes in groups
// of a multiple of 32, with a head_dim that is one as well, lie as attention's
// kernels read them (lane_block.h). All others, and KVmix's words, are strings
// of bits, group after group:
//   codes   [groups, words] uint32, a group as bit_packing.h draws it
//   scales  [groups] half
//   zeros   [groups] half
// PER_CHANNEL: group c is channel c. PER_TOKEN: group t * (D / group_size) + j
// is channels [j, j + 1) * group_size of token t.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kvmix/base/check.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"
#include "quant/group_affine.pb.h"
#include "quant/group_quantizer.h"
#include "quant/quantizer.h"

namespace kvmix {
namespace {

constexpr char kName[] = "group_affine";
constexpr int kMaxHeadDim = 4096;
constexpr int kPerTokenBlockTokens = 32;
constexpr int kElevenCodes = ElevenBlock::kTokens;

// A block and the tokens of it that are meant.
void CheckRange(const BlockCodec& codec, int first, int count) {
  KVMIX_CHECK(
      first >= 0 && count >= 0 && first + count <= codec.block_tokens() &&
      first % codec.granularity() == 0 && count % codec.granularity() == 0)
      << "tokens [" << first << ", " << first + count << ") of a block of "
      << codec.block_tokens() << ", granularity " << codec.granularity();
}

class LaneCodec final : public BlockCodec {
 public:
  static bool Fits(const QuantFormat& format, int head_dim) {
    return format.packing() == QuantFormat::DENSE &&
           format.group_size() % LaneBlock::kSlice == 0 &&
           head_dim % LaneBlock::kSlice == 0;
  }

  LaneCodec(const QuantFormat& format, Side side, int head_dim)
      : keys_(side == Side::kKey),
        per_channel_(format.axis() == QuantFormat::PER_CHANNEL),
        tokens_(per_channel_ ? format.group_size() : kPerTokenBlockTokens),
        block_{.bits = format.bits(),
               .lanes = keys_ ? tokens_ : head_dim,
               .inner = keys_ ? head_dim : tokens_,
               .group = format.group_size(),
               .groups_along_lanes = keys_ == per_channel_} {}

  int block_tokens() const override { return tokens_; }
  int granularity() const override { return per_channel_ ? tokens_ : 1; }
  BlockBytes bytes() const override {
    return {.codes = block_.code_bytes(),
            .scales = block_.scale_bytes(),
            .zeros = block_.scale_bytes()};
  }
  void Encode(const float* x, int64_t stride, int first, int count,
              uint8_t* block) const override {
    EncodeLanes(block_, PartOf(first, count), x, stride, block);
  }
  void Decode(const uint8_t* block, int first, int count, float* x,
              int64_t stride) const override {
    DecodeLanes(block_, PartOf(first, count), block, x, stride);
  }
  const LaneBlock* lane_block() const override { return &block_; }

 private:
  LanePart PartOf(int first, int count) const {
    CheckRange(*this, first, count);
    return keys_ ? LanePart{.first_lane = first,
                            .num_lanes = count,
                            .first_inner = 0,
                            .num_inner = block_.inner}
                 : LanePart{.first_lane = 0,
                            .num_lanes = block_.lanes,
                            .first_inner = first,
                            .num_inner = count};
  }

  const bool keys_, per_channel_;
  const int tokens_;
  const LaneBlock block_;
};

class StringCodec final : public BlockCodec {
 public:
  StringCodec(const QuantFormat& format, Side side, int head_dim)
      : group_{.bits = format.bits(),
               .size = format.group_size(),
               .packing = format.packing()},
        keys_(side == Side::kKey),
        per_channel_(format.axis() == QuantFormat::PER_CHANNEL),
        head_dim_(head_dim),
        groups_per_token_(per_channel_ ? 0 : head_dim / group_.size),
        num_groups_(per_channel_ ? head_dim
                                 : kPerTokenBlockTokens * groups_per_token_),
        eleven_{
            .head_dim = head_dim,
            .last_scale = group_.packing == QuantFormat::KVMIX_3BIT_11_RESCALED
                              ? 7.0f / 3.0f
                              : 1.0f} {}

  int block_tokens() const override {
    return per_channel_ ? group_.size : kPerTokenBlockTokens;
  }
  int granularity() const override { return per_channel_ ? group_.size : 1; }
  BlockBytes bytes() const override {
    return {.codes = int64_t{4} * num_groups_ * group_.words(),
            .scales = int64_t{2} * num_groups_,
            .zeros = int64_t{2} * num_groups_};
  }
  const ElevenBlock* eleven_block() const override {
    return keys_ && group_.packing != QuantFormat::DENSE ? &eleven_ : nullptr;
  }

  void Encode(const float* x, int64_t stride, int first, int count,
              uint8_t* block) const override {
    CheckRange(*this, first, count);
    const int size = per_channel_ ? group_.size : head_dim_;
    const int rows = per_channel_ ? head_dim_ : count;
    std::vector<float> groups(static_cast<size_t>(rows) * size);
    if (keys_ == per_channel_) {
      for (int row = 0; row < rows; ++row)
        std::copy_n(x + row * stride, size, groups.data() + row * size);
    } else {
      Transpose(x, size, rows, stride, groups.data(), size);
    }
    const Groups to = GroupsOf(block, first);
    EncodeGroups(group_, groups.data(), NumGroups(count), to.words, to.scales,
                 to.zeros);
  }

  void Decode(const uint8_t* block, int first, int count, float* x,
              int64_t stride) const override {
    CheckRange(*this, first, count);
    const int size = per_channel_ ? group_.size : head_dim_;
    const int rows = per_channel_ ? head_dim_ : count;
    const Groups from = GroupsOf(const_cast<uint8_t*>(block), first);
    if (keys_ && per_channel_) {
      DecodeGroups(group_, from.words, from.scales, from.zeros, rows, x,
                   stride);
      return;
    }
    std::vector<float> groups(static_cast<size_t>(rows) * size);
    DecodeGroups(group_, from.words, from.scales, from.zeros, NumGroups(count),
                 groups.data(), group_.size);
    if (keys_ == per_channel_) {
      for (int row = 0; row < rows; ++row)
        std::copy_n(groups.data() + row * size, size, x + row * stride);
    } else {
      Transpose(groups.data(), rows, size, size, x, stride);
    }
  }

 private:
  struct Groups {
    uint32_t* words;
    Half* scales;
    Half* zeros;
  };

  int NumGroups(int count) const {
    return per_channel_ ? head_dim_ : count * groups_per_token_;
  }

  // The groups of `block` from token `first` on.
  Groups GroupsOf(uint8_t* block, int first) const {
    const int64_t skip = int64_t{first} * groups_per_token_;
    const BlockBytes size = bytes();
    return {
        reinterpret_cast<uint32_t*>(block) + skip * group_.words(),
        reinterpret_cast<Half*>(block + size.codes) + skip,
        reinterpret_cast<Half*>(block + size.codes + size.scales) + skip,
    };
  }

  // out [columns, out_stride] = in [rows, in_stride]^T
  static void Transpose(const float* in, int rows, int columns,
                        int64_t in_stride, float* out, int64_t out_stride) {
    for (int row = 0; row < rows; ++row)
      for (int column = 0; column < columns; ++column)
        out[column * out_stride + row] = in[row * in_stride + column];
  }

  const GroupFormat group_;
  const bool keys_, per_channel_;
  const int head_dim_;
  const int groups_per_token_;
  const int num_groups_;
  const ElevenBlock eleven_;
};

std::string DivisorsFrom8(int head_dim) {
  std::string list;
  for (int g = 8; g <= head_dim; ++g)
    if (head_dim % g == 0) absl::StrAppend(&list, list.empty() ? "" : ", ", g);
  return list;
}

absl::Status ValidateKvmixWord(const QuantFormat& format) {
  const std::string packing = QuantFormat::Packing_Name(format.packing());
  if (format.bits() != 3)
    return absl::InvalidArgumentError(absl::StrCat(
        "bits is ", format.bits(), " but must be 3 with packing ", packing));
  if (format.axis() != QuantFormat::PER_CHANNEL)
    return absl::InvalidArgumentError(absl::StrCat(
        "axis must be PER_CHANNEL with packing ", packing,
        ": 11 divides no head_dim in use; use packing DENSE for PER_TOKEN"));
  if (format.group_size() != kElevenCodes)
    return absl::InvalidArgumentError(
        absl::StrCat("group_size is ", format.group_size(),
                     " but must be 11 with packing ", packing));
  return absl::OkStatus();
}

absl::Status ValidateFormat(const QuantFormat& format, int head_dim) {
  if (format.quantizer() != kName)
    return absl::InvalidArgumentError(
        absl::StrCat("quantizer is \"", format.quantizer(), "\" but must be \"",
                     kName, "\""));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(head_dim, 8, kMaxHeadDim, "head_dim"));
  if (head_dim % 8 != 0)
    return absl::InvalidArgumentError(
        absl::StrCat("head_dim is ", head_dim, " but must be a multiple of 8"));
  if (format.bits() < 1 || format.bits() > 8)
    return absl::InvalidArgumentError(
        absl::StrCat("bits is ", format.bits(),
                     " but must be in [1, 8], or 16 for no quantization"));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(format.group_size(), 1, kMaxGroupSize, "group_size"));
  if (format.axis() != QuantFormat::PER_CHANNEL &&
      format.axis() != QuantFormat::PER_TOKEN)
    return absl::InvalidArgumentError(
        absl::StrCat("axis is ", static_cast<int>(format.axis()),
                     " but must be PER_CHANNEL or PER_TOKEN"));
  if (!QuantFormat::Packing_IsValid(format.packing()))
    return absl::InvalidArgumentError(absl::StrCat(
        "packing is ", static_cast<int>(format.packing()),
        " but must be DENSE, KVMIX_3BIT_11 or KVMIX_3BIT_11_RESCALED"));
  if (format.packing() != QuantFormat::DENSE)
    KVMIX_RETURN_IF_ERROR(ValidateKvmixWord(format));
  if (format.axis() == QuantFormat::PER_TOKEN &&
      head_dim % format.group_size() != 0)
    return absl::InvalidArgumentError(absl::StrCat(
        "group_size is ", format.group_size(), " but must divide head_dim ",
        head_dim, " (PER_TOKEN); use ", DivisorsFrom8(head_dim)));
  return absl::OkStatus();
}

class GroupAffine final : public Quantizer {
 public:
  explicit GroupAffine(const GroupAffineOptions& options)
      : key_(WithDefaults(options.key(), QuantFormat::PER_CHANNEL)),
        value_(WithDefaults(options.value(), QuantFormat::PER_TOKEN)) {}

  absl::StatusOr<QuantFormat> FormatFor(Side side, int bits,
                                        int head_dim) const override {
    QuantFormat format;
    format.set_bits(bits);
    if (bits == 16) return format;
    const GroupAffineOptions::Side& options =
        side == Side::kKey ? key_ : value_;
    format.set_quantizer(kName);
    format.set_axis(options.axis());
    format.set_group_size(options.group_size());
    if (bits == 3 && options.three_bit() != QuantFormat::DENSE) {
      format.set_packing(options.three_bit());
      format.set_group_size(kElevenCodes);
    }
    KVMIX_RETURN_IF_ERROR(
        AddContext(ValidateFormat(format, head_dim), SideName(side)));
    return format;
  }

  absl::StatusOr<std::unique_ptr<BlockCodec>> MakeCodec(
      const QuantFormat& format, Side side, int head_dim) const override {
    KVMIX_RETURN_IF_ERROR(ValidateFormat(format, head_dim));
    if (LaneCodec::Fits(format, head_dim))
      return std::make_unique<LaneCodec>(format, side, head_dim);
    return std::make_unique<StringCodec>(format, side, head_dim);
  }

 private:
  static GroupAffineOptions::Side WithDefaults(GroupAffineOptions::Side side,
                                               QuantFormat::Axis axis) {
    if (side.axis() == QuantFormat::AXIS_UNSPECIFIED) side.set_axis(axis);
    if (side.group_size() == 0) side.set_group_size(32);
    return side;
  }

  const GroupAffineOptions::Side key_, value_;
};

// What no head_dim can make right.
absl::Status ValidateSide(const GroupAffineOptions::Side& side,
                          QuantFormat::Axis default_axis,
                          const std::string& name) {
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(side.group_size(), 0, kMaxGroupSize,
                                          absl::StrCat(name, ".group_size")));
  if (!QuantFormat::Axis_IsValid(side.axis()))
    return absl::InvalidArgumentError(
        absl::StrCat(name, ".axis is ", static_cast<int>(side.axis()),
                     " but must be PER_CHANNEL or PER_TOKEN"));
  if (!QuantFormat::Packing_IsValid(side.three_bit()))
    return absl::InvalidArgumentError(absl::StrCat(
        name, ".three_bit is ", static_cast<int>(side.three_bit()),
        " but must be DENSE, KVMIX_3BIT_11 or KVMIX_3BIT_11_RESCALED"));
  const QuantFormat::Axis axis =
      side.axis() == QuantFormat::AXIS_UNSPECIFIED ? default_axis : side.axis();
  if (side.three_bit() != QuantFormat::DENSE &&
      axis != QuantFormat::PER_CHANNEL)
    return absl::InvalidArgumentError(absl::StrCat(
        name, ".three_bit is ", QuantFormat::Packing_Name(side.three_bit()),
        " but must be DENSE with axis PER_TOKEN"));
  return absl::OkStatus();
}

const bool kRegistered = Registry<Quantizer>::Get().Add<GroupAffineOptions>(
    kName, "asymmetric min/max groups, 1 to 8 bits, per channel or per token",
    [](const GroupAffineOptions& options)
        -> absl::StatusOr<std::unique_ptr<Quantizer>> {
      KVMIX_RETURN_IF_ERROR(
          ValidateSide(options.key(), QuantFormat::PER_CHANNEL, "key"));
      KVMIX_RETURN_IF_ERROR(
          ValidateSide(options.value(), QuantFormat::PER_TOKEN, "value"));
      return std::make_unique<GroupAffine>(options);
    });

}  // namespace
}  // namespace kvmix
