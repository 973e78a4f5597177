// Quantizer "group_affine": asymmetric min/max quantization in groups, keys or
// values along either axis. KVmix and KIVI store keys PER_CHANNEL, because
// their outliers sit in channels, and values PER_TOKEN.
//
// A block is 32 tokens, or the group's with PER_CHANNEL. Dense codes in groups
// of a multiple of 32, with a head_dim that is one as well, lie as attention's
// kernels read them (lane_block.h). All others, and KVmix's words, are strings
// of bits, group after group (group_codec.h):
//   codes   [groups, words] uint32, a group as bit_packing.h draws it
//   scales  [groups] half
//   zeros   [groups] half

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"
#include "quant/group_affine.pb.h"
#include "quant/group_codec.h"
#include "quant/group_quantizer.h"
#include "quant/quantizer.h"

namespace kvmix {
namespace {

constexpr char kName[] = "group_affine";
constexpr int kElevenCodes = ElevenBlock::kTokens;

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

class StringCodec final : public GroupCodec {
 public:
  StringCodec(const QuantFormat& format, Side side, int head_dim)
      : GroupCodec(format, side, head_dim),
        group_{.bits = format.bits(),
               .size = format.group_size(),
               .packing = format.packing()},
        keys_(side == Side::kKey),
        eleven_{
            .head_dim = head_dim,
            .last_scale = group_.packing == QuantFormat::KVMIX_3BIT_11_RESCALED
                              ? 7.0f / 3.0f
                              : 1.0f} {}

  BlockBytes bytes() const override {
    return {.codes = int64_t{4} * num_groups() * group_.words(),
            .scales = int64_t{2} * num_groups(),
            .zeros = int64_t{2} * num_groups()};
  }
  const ElevenBlock* eleven_block() const override {
    return keys_ && group_.packing != QuantFormat::DENSE ? &eleven_ : nullptr;
  }

 private:
  struct Groups {
    uint32_t* words;
    Half* scales;
    Half* zeros;
  };

  void WriteGroups(const float* x, int first, int n,
                   uint8_t* block) const override {
    const Groups to = GroupsOf(block, first);
    EncodeGroups(group_, x, n, to.words, to.scales, to.zeros);
  }
  void ReadGroups(const uint8_t* block, int first, int n, float* x,
                  int64_t stride) const override {
    const Groups from = GroupsOf(const_cast<uint8_t*>(block), first);
    DecodeGroups(group_, from.words, from.scales, from.zeros, n, x, stride);
  }

  // The groups of `block` from group `first` on.
  Groups GroupsOf(uint8_t* block, int first) const {
    const BlockBytes size = bytes();
    return {
        reinterpret_cast<uint32_t*>(block) + int64_t{first} * group_.words(),
        reinterpret_cast<Half*>(block + size.codes) + first,
        reinterpret_cast<Half*>(block + size.codes + size.scales) + first,
    };
  }

  const GroupFormat group_;
  const bool keys_;
  const ElevenBlock eleven_;
};

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
  if (!QuantFormat::Packing_IsValid(format.packing()))
    return absl::InvalidArgumentError(absl::StrCat(
        "packing is ", static_cast<int>(format.packing()),
        " but must be DENSE, KVMIX_3BIT_11 or KVMIX_3BIT_11_RESCALED"));
  KVMIX_RETURN_IF_ERROR(
      ValidateGroupFormat(format, kName, /*min_bits=*/1, 8, head_dim));
  return format.packing() == QuantFormat::DENSE ? absl::OkStatus()
                                                : ValidateKvmixWord(format);
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
