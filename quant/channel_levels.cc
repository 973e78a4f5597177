// Quantizer "channel_levels": keys per channel, every channel of a block with
// as many bits as pay off there.
//
// Channels of keys differ in spread, and queries differ in how much they look
// at each: an error e_c in channel c moves a score by q_c e_c. A block of T
// tokens spends bits * D * T bits so that
//   sum_c weight_c * sd_c^2 * N(bits_c),   weight_c = E q_c^2
// is least, N(b) being the mean squared error of b-bit codes of normal numbers
// (normal_code.h: the best codebook, or a trellis). N is convex, so that giving
// one bit after the other to the channel that gains most is exact (Fox,
// Operations Research 14, 1966); reverse water-filling with whole bits.
// Channels without bits are their mean.
//   x_hat = zero_c + scale_c * level(code),  zero: mean, scale: least squares
//   codes   bits_c * T bits of one channel after the other, uint32 words
//   scales  [D] half    zeros [D] half
//   bits    [D] of 4 bits, channel 2i in the low half of byte i
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "kvmix/base/half.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"
#include "quant/bit_packing.h"
#include "quant/channel_levels.pb.h"
#include "quant/group_quantizer.h"
#include "quant/normal_code.h"
#include "quant/wrapping_codec.h"

namespace kvmix {
namespace {

constexpr char kName[] = "channel_levels";
constexpr int kMaxBits = 6;
constexpr float kMaxHalf = 65504;

// N(0) = 1, N(1), ... of the code.
std::vector<double> NormalErrors(bool trellis) {
  std::vector<double> errors = {1};
  for (int b = 1; b <= MaxNormalCodeBits(trellis); ++b)
    errors.push_back(NormalCodeOfBits(trellis, b).error());
  return errors;
}

// Bits of each channel, `total` together, whose costs are `energy` *
// error[bits].
std::vector<int> SpendBits(const std::vector<double>& energy,
                           const std::vector<double>& error, int total) {
  const int most = static_cast<int>(error.size()) - 1;
  std::vector<int> bits(energy.size());
  std::vector<double> gain(energy.size());
  for (size_t c = 0; c < energy.size(); ++c)
    gain[c] = energy[c] * (error[0] - error[1]);
  for (; total > 0; --total) {
    const size_t c = std::max_element(gain.begin(), gain.end()) - gain.begin();
    ++bits[c];
    gain[c] = bits[c] == most
                  ? -1
                  : energy[c] * (error[bits[c]] - error[bits[c] + 1]);
  }
  return bits;
}

Half ClampedHalf(double x) {
  return ToHalf(std::clamp(static_cast<float>(x), -kMaxHalf, kMaxHalf));
}

class ChannelLevelsCodec final : public GroupCodec {
 public:
  ChannelLevelsCodec(const QuantFormat& format, int head_dim,
                     const ChannelLevelsFormat& own)
      : GroupCodec(format, Side::kKey, head_dim),
        head_dim_(head_dim),
        bits_(format.bits()),
        trellis_(own.trellis()),
        errors_(NormalErrors(trellis_)),
        weight_(own.weight().begin(), own.weight().end()) {}

  BlockBytes bytes() const override {
    return {.codes = int64_t{4} * head_dim_ * Words(bits_),
            .scales = int64_t{2} * head_dim_,
            .zeros = int64_t{2} * head_dim_,
            .side_data = head_dim_ / 2};
  }

 private:
  int Words(int bits) const { return PackedWords(group_size(), bits); }
  uint32_t* Codes(uint8_t* block) const {
    return reinterpret_cast<uint32_t*>(block);
  }
  Half* Scales(uint8_t* block) const {
    return reinterpret_cast<Half*>(Codes(block) + head_dim_ * Words(bits_));
  }
  Half* Zeros(uint8_t* block) const { return Scales(block) + head_dim_; }
  uint8_t* ChannelBits(uint8_t* block) const {
    return reinterpret_cast<uint8_t*>(Zeros(block) + head_dim_);
  }

  // Least squares of x - zero against the numbers of the codes.
  void WriteChannel(const float* x, float zero, float sd, int bits,
                    uint32_t* words, Half& scale) const {
    const NormalCode& code = NormalCodeOfBits(trellis_, bits);
    std::vector<uint32_t> codes(group_size());
    std::vector<float> levels(group_size());
    const float inverse = sd > 0 ? 1 / sd : 0;
    for (int t = 0; t < group_size(); ++t) levels[t] = (x[t] - zero) * inverse;
    code.Encode(levels.data(), group_size(), codes.data());
    code.Decode(codes.data(), group_size(), levels.data());
    double product = 0, squares = 0;
    for (int t = 0; t < group_size(); ++t) {
      const double level = levels[t];
      product += level * (x[t] - zero);
      squares += level * level;
    }
    scale = ClampedHalf(squares > 0 ? product / squares : 0);
    PackCodes(codes.data(), group_size(), bits, words, Words(bits));
  }

  void WriteGroups(const float* x, int, int n, uint8_t* block) const override {
    std::vector<float> finite(x, x + static_cast<size_t>(n) * group_size());
    for (float& v : finite)
      if (!std::isfinite(v)) v = 0;
    std::vector<double> sd(n), energy(n);
    for (int c = 0; c < n; ++c) {
      const float* group =
          finite.data() + static_cast<size_t>(c) * group_size();
      double sum = 0, squares = 0;
      for (int t = 0; t < group_size(); ++t) sum += group[t];
      Zeros(block)[c] = ClampedHalf(sum / group_size());
      const double zero = ToFloat(Zeros(block)[c]);
      for (int t = 0; t < group_size(); ++t)
        squares += (group[t] - zero) * (group[t] - zero);
      sd[c] = std::sqrt(squares / group_size());
      energy[c] = squares * (weight_.empty() ? 1.0 : weight_[c]);
    }
    const std::vector<int> bits = SpendBits(energy, errors_, bits_ * n);
    uint32_t* words = Codes(block);
    for (int c = 0; c < n; ++c) {
      uint8_t& pair = ChannelBits(block)[c / 2];
      pair = static_cast<uint8_t>(c % 2 == 0 ? bits[c] : pair | bits[c] << 4);
      Scales(block)[c] = Half();
      if (bits[c] == 0) continue;
      WriteChannel(finite.data() + static_cast<size_t>(c) * group_size(),
                   ToFloat(Zeros(block)[c]), static_cast<float>(sd[c]), bits[c],
                   words, Scales(block)[c]);
      words += Words(bits[c]);
    }
  }

  void ReadGroups(const uint8_t* block, int, int n, float* x,
                  int64_t stride) const override {
    uint8_t* from = const_cast<uint8_t*>(block);
    const uint32_t* words = Codes(from);
    std::vector<uint32_t> codes(group_size());
    for (int c = 0; c < n; ++c) {
      const int bits = ChannelBits(from)[c / 2] >> (c % 2 * 4) & 0xf;
      const float zero = ToFloat(Zeros(from)[c]);
      const float scale = ToFloat(Scales(from)[c]);
      float* row = x + c * stride;
      if (bits == 0) {
        std::fill_n(row, group_size(), zero);
        continue;
      }
      for (int t = 0; t < group_size(); ++t)
        codes[t] = UnpackCode(words, Words(bits), bits, t);
      NormalCodeOfBits(trellis_, bits).Decode(codes.data(), group_size(), row);
      for (int t = 0; t < group_size(); ++t) row[t] = zero + scale * row[t];
      words += Words(bits);
    }
  }

  const int head_dim_, bits_;
  const bool trellis_;
  const std::vector<double> errors_;
  const std::vector<float> weight_;
};

class ChannelLevels final : public Quantizer {
 public:
  ChannelLevels(int tokens, bool trellis)
      : tokens_(tokens), trellis_(trellis) {}

  absl::StatusOr<QuantFormat> FormatFor(Side side, int bits,
                                        int head_dim) const override {
    QuantFormat format;
    format.set_bits(bits);
    if (bits == 16) return format;
    format.set_quantizer(kName);
    format.set_axis(QuantFormat::PER_CHANNEL);
    format.set_group_size(tokens_);
    ChannelLevelsFormat own;
    own.set_trellis(trellis_);
    format.mutable_options()->PackFrom(own);
    KVMIX_RETURN_IF_ERROR(
        AddContext(MakeCodec(format, side, head_dim).status(), SideName(side)));
    return format;
  }

  absl::StatusOr<std::unique_ptr<BlockCodec>> MakeCodec(
      const QuantFormat& format, Side side, int head_dim) const override {
    KVMIX_RETURN_IF_ERROR(
        ValidateGroupFormat(format, kName, 1, kMaxBits, head_dim));
    if (side != Side::kKey || format.axis() != QuantFormat::PER_CHANNEL)
      return absl::InvalidArgumentError(
          "quantizer channel_levels stores keys PER_CHANNEL alone; combine it "
          "with one for values by quantizer \"per_side\"");
    KVMIX_RETURN_IF_ERROR(
        ValidateDivides(32, format.group_size(), "32", "group_size"));
    KVMIX_ASSIGN_OR_RETURN(const auto own,
                           OptionsOf<ChannelLevelsFormat>(format));
    if (!own.weight().empty() && own.weight_size() != head_dim)
      return absl::InvalidArgumentError(
          absl::StrCat("options.weight has ", own.weight_size(),
                       " numbers but must have none or head_dim, ", head_dim));
    for (const float w : own.weight())
      KVMIX_RETURN_IF_ERROR(
          ValidateIsInRange(w, 0.0f, kMaxWeight, "options.weight"));
    return std::make_unique<ChannelLevelsCodec>(format, head_dim, own);
  }

  absl::StatusOr<bool> WantsQueryEnergy(const QuantFormat&) const override {
    return true;
  }
  absl::StatusOr<QuantFormat> Calibrated(
      const QuantFormat& format,
      absl::Span<const float> query_energy) const override {
    KVMIX_ASSIGN_OR_RETURN(auto own, OptionsOf<ChannelLevelsFormat>(format));
    own.mutable_weight()->Assign(query_energy.begin(), query_energy.end());
    QuantFormat calibrated = format;
    calibrated.mutable_options()->PackFrom(own);
    return calibrated;
  }

 private:
  static constexpr float kMaxWeight = 1e30f;
  const int tokens_;
  const bool trellis_;
};

const bool kRegistered = Registry<Quantizer>::Get().Add<ChannelLevelsOptions>(
    kName, "keys per channel, bits where keys spread and queries look",
    [](const ChannelLevelsOptions& options) -> Registry<Quantizer>::Result {
      KVMIX_RETURN_IF_ERROR(ValidateIsInRange(options.tokens(), 0,
                                              kMaxGroupSize, "options.tokens"));
      return std::make_unique<ChannelLevels>(
          options.tokens() == 0 ? 128 : options.tokens(), options.trellis());
    });

}  // namespace
}  // namespace kvmix
