// Quantizer "clip_search": group_affine whose groups are clipped where that
// lowers their squared error (SKVQ, Duanmu et al., arXiv 2405.06219, calls it
// clipped dynamic quantization).
//
// The two ends of a group move inwards in steps of 1/32 of its range, each in
// turn, to the least squared error: at most 12 steps an end, twice round. Since
// clipped numbers have the chosen ends as minimum and maximum, group_affine
// then stores them as it always does; blocks are its blocks, and attention's
// kernels compute with them.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "kvmix/base/half.h"
#include "kvmix/base/registry.h"
#include "quant/clip_search.pb.h"
#include "quant/wrapping_codec.h"

namespace kvmix {
namespace {

constexpr char kName[] = "clip_search";
constexpr char kInner[] = "group_affine";
constexpr int kMaxSteps = 12;
constexpr float kStep = 1.0f / 32;

// Ties to even, for |x| < 2^22.
float Round(float x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
  return (x + kShift) - kShift;
}

// Squared error of x [n], clipped to [low, high], as group_affine stores it.
double SquaredError(const std::vector<float>& x, int bits, float low,
                    float high) {
  const float top = static_cast<float>((1 << bits) - 1);
  const float zero = ToFloat(ToHalf(low));
  const float scale = ToFloat(ToHalf((high - low) / top));
  const float inverse = scale == 0 ? 0 : 1 / scale;
  float sum = 0;
  for (const float v : x) {
    const float code = std::clamp(Round((v - zero) * inverse), 0.0f, top);
    const float error = v - (code * scale + zero);
    sum += error * error;
  }
  return sum;
}

struct Range {
  float low, high;
};

Range BestRange(const std::vector<float>& x, int bits) {
  const auto [min, max] = std::minmax_element(x.begin(), x.end());
  const float low = *min, high = *max, step = (high - low) * kStep;
  int steps[2] = {0, 0};
  double least = SquaredError(x, bits, low, high);
  for (int end : {0, 1, 0, 1}) {
    int best = steps[end];
    for (int s = 0; s <= kMaxSteps; ++s) {
      steps[end] = s;
      const double error =
          SquaredError(x, bits, low + static_cast<float>(steps[0]) * step,
                       high - static_cast<float>(steps[1]) * step);
      if (error < least) {
        least = error;
        best = s;
      }
    }
    steps[end] = best;
  }
  return {low + static_cast<float>(steps[0]) * step,
          high - static_cast<float>(steps[1]) * step};
}

class ClippingCodec final : public WrappingCodec {
 public:
  ClippingCodec(std::unique_ptr<BlockCodec> inner, const QuantFormat& format,
                Side side, int head_dim)
      : WrappingCodec(std::move(inner), side, head_dim),
        bits_(format.bits()),
        group_(format.group_size()),
        per_channel_(format.axis() == QuantFormat::PER_CHANNEL) {}

  void Encode(const float* x, int64_t stride, int first, int count,
              uint8_t* block) const override {
    TokenTile tile(side(), head_dim(), x, stride, count);
    const int groups_long = per_channel_ ? count : head_dim();
    const int groups_wide = per_channel_ ? head_dim() : count;
    std::vector<float> group(group_);
    for (int across = 0; across < groups_wide; ++across) {
      for (int begin = 0; begin < groups_long; begin += group_) {
        const auto element = [&](int i) -> float& {
          return per_channel_ ? tile.at(begin + i, across)
                              : tile.at(across, begin + i);
        };
        for (int i = 0; i < group_; ++i) group[i] = element(i);
        const Range range = BestRange(group, bits_);
        for (int i = 0; i < group_; ++i)
          element(i) = std::clamp(group[i], range.low, range.high);
      }
    }
    inner().Encode(tile.x.data(), tile.stride(), first, count, block);
  }
  void Decode(const uint8_t* block, int first, int count, float* x,
              int64_t stride) const override {
    inner().Decode(block, first, count, x, stride);
  }
  const LaneBlock* lane_block() const override { return inner().lane_block(); }

 private:
  const int bits_, group_;
  const bool per_channel_;
};

class ClipSearch final : public Quantizer {
 public:
  explicit ClipSearch(std::unique_ptr<Quantizer> inner)
      : inner_(std::move(inner)) {}

  absl::StatusOr<QuantFormat> FormatFor(Side side, int bits,
                                        int head_dim) const override {
    KVMIX_ASSIGN_OR_RETURN(QuantFormat format,
                           inner_->FormatFor(side, bits, head_dim));
    if (bits != 16) format.set_quantizer(kName);
    return format;
  }

  absl::StatusOr<std::unique_ptr<BlockCodec>> MakeCodec(
      const QuantFormat& format, Side side, int head_dim) const override {
    KVMIX_RETURN_IF_ERROR(CheckScheme(format, kName));
    if (format.packing() != QuantFormat::DENSE)
      return absl::InvalidArgumentError(
          "packing must be DENSE with quantizer clip_search");
    QuantFormat inner = format;
    inner.set_quantizer(kInner);
    KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<BlockCodec> codec,
                           inner_->MakeCodec(inner, side, head_dim));
    return std::make_unique<ClippingCodec>(std::move(codec), format, side,
                                           head_dim);
  }

 private:
  const std::unique_ptr<Quantizer> inner_;
};

const bool kRegistered = Registry<Quantizer>::Get().Add<ClipSearchOptions>(
    kName, "group_affine, each group clipped to its least squared error",
    [](const ClipSearchOptions& options) -> Registry<Quantizer>::Result {
      if (options.groups().key().three_bit() != QuantFormat::DENSE ||
          options.groups().value().three_bit() != QuantFormat::DENSE)
        return absl::InvalidArgumentError(
            "options.groups three_bit must be DENSE");
      Component inner;
      inner.set_name(kInner);
      inner.mutable_options()->PackFrom(options.groups());
      KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<Quantizer> made,
                             MakeInnerQuantizer(inner));
      return std::make_unique<ClipSearch>(std::move(made));
    });

}  // namespace
}  // namespace kvmix
