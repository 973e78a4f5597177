// Quantizer "channel_levels": keys per channel, every channel of a block with
// as many bits as pay off there.
//
// Channels of keys differ in spread, and queries differ in how much they look
// at each: an error e_c in channel c moves a score by q_c e_c. A block of T
// tokens spends bits * D * T bits so that
//   sum_c weight_c * sd_c^2 * N(bits_c),   weight_c = E q_c^2
// is least, N(b) being the mean squared error of the best b-bit quantizer of a
// normal variable (normal_codebook.h). N is convex, so that giving one bit
// after the other to the channel that gains most is exact (Fox, Operations
// Research 14, 1966); reverse water-filling with whole bits. Channels without
// bits are their mean.
//   x_hat = zero_c + scale_c * level(code),  zero: mean, scale: least squares
//   codes   bits_c * T bits of one channel after the other, uint32 words
//   scales  [D] half    zeros [D] half
//   bits    [D] of 4 bits, channel 2i in the low half of byte i
#include <algorithm>
#include <array>
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
#include "quant/normal_codebook.h"
#include "quant/wrapping_codec.h"

namespace kvmix {
namespace {

constexpr char kName[] = "channel_levels";
constexpr int kMaxChannelBits = 8;
constexpr int kMaxBits = 6;
constexpr float kMaxHalf = 65504;

// N(0) = 1, ... N(8).
const std::array<double, kMaxChannelBits + 1>& NormalErrors() {
  static const auto* const errors = [] {
    auto* all = new std::array<double, kMaxChannelBits + 1>;
    (*all)[0] = 1;
    for (int b = 1; b <= kMaxChannelBits; ++b)
      (*all)[b] = NormalCodebookError(b);
    return all;
  }();
  return *errors;
}

// Bits of each channel, `total` together, whose costs are `energy` * N(bits).
std::vector<int> SpendBits(const std::vector<double>& energy, int total) {
  const auto& error = NormalErrors();
  std::vector<int> bits(energy.size());
  std::vector<double> gain(energy.size());
  for (size_t c = 0; c < energy.size(); ++c)
    gain[c] = energy[c] * (error[0] - error[1]);
  for (; total > 0; --total) {
    const size_t c = std::max_element(gain.begin(), gain.end()) - gain.begin();
    ++bits[c];
    gain[c] = bits[c] == kMaxChannelBits
                  ? -1
                  : energy[c] * (error[bits[c]] - error[bits[c] + 1]);
  }
  return bits;
}

// Levels of a normal codebook, and the borders between them.
class Levels {
 public:
  explicit Levels(int bits) : levels_(NormalCodebook(bits)) {
    for (size_t i = 0; i + 1 < levels_.size(); ++i)
      borders_.push_back((levels_[i] + levels_[i + 1]) / 2);
  }
  uint32_t Nearest(float x) const {
    return static_cast<uint32_t>(
        std::lower_bound(borders_.begin(), borders_.end(), x) -
        borders_.begin());
  }
  float operator[](uint32_t code) const { return levels_[code]; }

 private:
  const std::vector<float>& levels_;
  std::vector<float> borders_;
};

const Levels& LevelsOf(int bits) {
  static const auto* const all = [] {
    auto* levels = new std::vector<Levels>;
    for (int b = 1; b <= kMaxChannelBits; ++b) levels->emplace_back(b);
    return levels;
  }();
  return (*all)[bits - 1];
}

Half ClampedHalf(double x) {
  return ToHalf(std::clamp(static_cast<float>(x), -kMaxHalf, kMaxHalf));
}

class ChannelLevelsCodec final : public GroupCodec {
 public:
  ChannelLevelsCodec(const QuantFormat& format, int head_dim,
                     std::vector<float> weight)
      : GroupCodec(format, Side::kKey, head_dim),
        head_dim_(head_dim),
        bits_(format.bits()),
        weight_(std::move(weight)) {}

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

  // Least squares of x - zero against the levels of `codes`.
  void WriteChannel(const float* x, float zero, float sd, int bits,
                    uint32_t* words, Half& scale) const {
    const Levels& levels = LevelsOf(bits);
    std::vector<uint32_t> codes(group_size());
    const float inverse = sd > 0 ? 1 / sd : 0;
    double product = 0, squares = 0;
    for (int t = 0; t < group_size(); ++t) {
      codes[t] = levels.Nearest((x[t] - zero) * inverse);
      const double level = levels[codes[t]];
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
    const std::vector<int> bits = SpendBits(energy, bits_ * n);
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
    for (int c = 0; c < n; ++c) {
      const int bits = ChannelBits(from)[c / 2] >> (c % 2 * 4) & 0xf;
      const float zero = ToFloat(Zeros(from)[c]);
      const float scale = ToFloat(Scales(from)[c]);
      float* row = x + c * stride;
      if (bits == 0) {
        std::fill_n(row, group_size(), zero);
        continue;
      }
      const Levels& levels = LevelsOf(bits);
      for (int t = 0; t < group_size(); ++t)
        row[t] = zero + scale * levels[UnpackCode(words, Words(bits), bits, t)];
      words += Words(bits);
    }
  }

  const int head_dim_, bits_;
  const std::vector<float> weight_;
};

class ChannelLevels final : public Quantizer {
 public:
  explicit ChannelLevels(int tokens) : tokens_(tokens) {}

  absl::StatusOr<QuantFormat> FormatFor(Side side, int bits,
                                        int head_dim) const override {
    QuantFormat format;
    format.set_bits(bits);
    if (bits == 16) return format;
    format.set_quantizer(kName);
    format.set_axis(QuantFormat::PER_CHANNEL);
    format.set_group_size(tokens_);
    format.mutable_options()->PackFrom(ChannelLevelsFormat());
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
    std::vector<float> weight(own.weight().begin(), own.weight().end());
    if (!weight.empty() && static_cast<int>(weight.size()) != head_dim)
      return absl::InvalidArgumentError(
          absl::StrCat("options.weight has ", weight.size(),
                       " numbers but must have none or head_dim, ", head_dim));
    for (const float w : weight)
      KVMIX_RETURN_IF_ERROR(
          ValidateIsInRange(w, 0.0f, kMaxWeight, "options.weight"));
    return std::make_unique<ChannelLevelsCodec>(format, head_dim,
                                                std::move(weight));
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
};

const bool kRegistered = Registry<Quantizer>::Get().Add<ChannelLevelsOptions>(
    kName, "keys per channel, bits where keys spread and queries look",
    [](const ChannelLevelsOptions& options) -> Registry<Quantizer>::Result {
      KVMIX_RETURN_IF_ERROR(ValidateIsInRange(options.tokens(), 0,
                                              kMaxGroupSize, "options.tokens"));
      return std::make_unique<ChannelLevels>(
          options.tokens() == 0 ? 128 : options.tokens());
    });

}  // namespace
}  // namespace kvmix
