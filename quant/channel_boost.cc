// Quantizer "channel_boost": keys per channel, a few channels of a block with
// more bits than the others (Kitty, Xia et al., arXiv 2511.18643). Those with
// the widest range in the block are chosen; codes of a boosted channel are cut:
// their high bits lie with the codes of the other channels, so that these form
// one dense matrix of `bits` bits, their low bits apart.
//   codes   [D, words(bits)] uint32, then [channels, words(extra)] uint32
//   scales  [D] half    zeros [D] half
//   boosted channels [channels] uint16, ascending
// Arithmetic is group_quantizer.h's with bits, or bits + extra bits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"
#include "quant/channel_boost.pb.h"
#include "quant/group_quantizer.h"
#include "quant/wrapping_codec.h"

namespace kvmix {
namespace {

constexpr char kName[] = "channel_boost";

class BoostCodec final : public GroupCodec {
 public:
  BoostCodec(const QuantFormat& format, Side side, int head_dim,
             const ChannelBoostFormat& own)
      : GroupCodec(format, side, head_dim),
        head_dim_(head_dim),
        bits_(format.bits()),
        extra_(own.extra_bits()),
        channels_(own.channels()) {}

  BlockBytes bytes() const override {
    return {.codes = int64_t{4} *
                     (head_dim_ * Words(bits_) + channels_ * Words(extra_)),
            .scales = int64_t{2} * head_dim_,
            .zeros = int64_t{2} * head_dim_,
            .side_data = int64_t{2} * channels_};
  }

 private:
  int Words(int bits) const { return PackedWords(group_size(), bits); }
  uint32_t* High(uint8_t* block, int channel) const {
    return reinterpret_cast<uint32_t*>(block) + channel * Words(bits_);
  }
  uint32_t* Low(uint8_t* block, int index) const {
    return High(block, head_dim_) + index * Words(extra_);
  }
  Half* Scales(uint8_t* block) const {
    return reinterpret_cast<Half*>(Low(block, channels_));
  }
  Half* Zeros(uint8_t* block) const { return Scales(block) + head_dim_; }
  uint16_t* Boosted(uint8_t* block) const {
    return reinterpret_cast<uint16_t*>(Zeros(block) + head_dim_);
  }

  std::vector<int> WidestChannels(const float* x) const {
    std::vector<float> range(head_dim_);
    for (int c = 0; c < head_dim_; ++c) {
      const float* group = x + int64_t{c} * group_size();
      const auto [min, max] = std::minmax_element(group, group + group_size());
      range[c] = *max - *min;
    }
    std::vector<int> order(head_dim_);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return range[a] > range[b]; });
    order.resize(channels_);
    std::sort(order.begin(), order.end());
    return order;
  }

  void WriteGroups(const float* x, int, int n, uint8_t* block) const override {
    EncodeGroups({.bits = bits_, .size = group_size()}, x, n, High(block, 0),
                 Scales(block), Zeros(block));
    const std::vector<int> boosted = WidestChannels(x);
    const int all_bits = bits_ + extra_;
    std::vector<uint32_t> words(Words(all_bits));
    std::vector<uint32_t> high(group_size()), low(group_size());
    for (int i = 0; i < channels_; ++i) {
      const int c = boosted[i];
      Boosted(block)[i] = static_cast<uint16_t>(c);
      EncodeGroups({.bits = all_bits, .size = group_size()},
                   x + int64_t{c} * group_size(), 1, words.data(),
                   Scales(block) + c, Zeros(block) + c);
      for (int j = 0; j < group_size(); ++j) {
        const uint32_t code =
            UnpackCode(words.data(), Words(all_bits), all_bits, j);
        high[j] = code >> extra_;
        low[j] = code & ((1u << extra_) - 1);
      }
      PackCodes(high.data(), group_size(), bits_, High(block, c), Words(bits_));
      PackCodes(low.data(), group_size(), extra_, Low(block, i), Words(extra_));
    }
  }

  void ReadGroups(const uint8_t* block, int, int n, float* x,
                  int64_t stride) const override {
    uint8_t* from = const_cast<uint8_t*>(block);
    DecodeGroups({.bits = bits_, .size = group_size()}, High(from, 0),
                 Scales(from), Zeros(from), n, x, stride);
    for (int i = 0; i < channels_; ++i) {
      const int c = Boosted(from)[i];
      const float scale = ToFloat(Scales(from)[c]);
      const float zero = ToFloat(Zeros(from)[c]);
      for (int j = 0; j < group_size(); ++j) {
        const uint32_t code =
            UnpackCode(High(from, c), Words(bits_), bits_, j) << extra_ |
            UnpackCode(Low(from, i), Words(extra_), extra_, j);
        x[c * stride + j] = static_cast<float>(code) * scale + zero;
      }
    }
  }

  const int head_dim_, bits_, extra_, channels_;
};

class ChannelBoost final : public Quantizer {
 public:
  explicit ChannelBoost(const ChannelBoostOptions& options)
      : options_(options) {}

  absl::StatusOr<QuantFormat> FormatFor(Side side, int bits,
                                        int head_dim) const override {
    QuantFormat format;
    format.set_bits(bits);
    if (bits == 16) return format;
    format.set_quantizer(kName);
    format.set_axis(QuantFormat::PER_CHANNEL);
    format.set_group_size(options_.group_size());
    ChannelBoostFormat own;
    own.set_extra_bits(options_.extra_bits());
    own.set_channels(std::max(
        1, static_cast<int>(std::lround(options_.fraction() * head_dim))));
    format.mutable_options()->PackFrom(own);
    KVMIX_RETURN_IF_ERROR(
        AddContext(MakeCodec(format, side, head_dim).status(), SideName(side)));
    return format;
  }

  absl::StatusOr<std::unique_ptr<BlockCodec>> MakeCodec(
      const QuantFormat& format, Side side, int head_dim) const override {
    KVMIX_RETURN_IF_ERROR(ValidateGroupFormat(format, kName, 1, 7, head_dim));
    if (side != Side::kKey || format.axis() != QuantFormat::PER_CHANNEL)
      return absl::InvalidArgumentError(
          "quantizer channel_boost stores keys PER_CHANNEL alone; combine it "
          "with one for values by quantizer \"per_side\"");
    KVMIX_ASSIGN_OR_RETURN(const auto own,
                           OptionsOf<ChannelBoostFormat>(format));
    KVMIX_RETURN_IF_ERROR(ValidateIsInRange(
        own.extra_bits(), 1, 8 - format.bits(), "options.extra_bits"));
    KVMIX_RETURN_IF_ERROR(
        ValidateIsInRange(own.channels(), 1, head_dim, "options.channels"));
    return std::make_unique<BoostCodec>(format, side, head_dim, own);
  }

 private:
  const ChannelBoostOptions options_;
};

const bool kRegistered = Registry<Quantizer>::Get().Add<ChannelBoostOptions>(
    kName, "keys per channel, the widest channels with more bits (Kitty)",
    [](ChannelBoostOptions options) -> Registry<Quantizer>::Result {
      if (options.group_size() == 0) options.set_group_size(32);
      if (options.fraction() == 0) options.set_fraction(0.125);
      if (options.extra_bits() == 0) options.set_extra_bits(2);
      KVMIX_RETURN_IF_ERROR(ValidateIsInRange(
          options.group_size(), 1, kMaxGroupSize, "options.group_size"));
      KVMIX_RETURN_IF_ERROR(
          ValidateIsInRange(options.fraction(), 0.0, 1.0, "options.fraction"));
      KVMIX_RETURN_IF_ERROR(
          ValidateIsInRange(options.extra_bits(), 1, 7, "options.extra_bits"));
      return std::make_unique<ChannelBoost>(options);
    });

}  // namespace
}  // namespace kvmix
