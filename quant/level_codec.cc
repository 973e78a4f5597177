#include "quant/level_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kvmix/base/half.h"
#include "kvmix/base/status_macros.h"
#include "quant/bit_packing.h"

namespace kvmix {
namespace {

class LevelQuantizer final : public Quantizer {
 public:
  explicit LevelQuantizer(LevelQuantizerOptions options)
      : options_(std::move(options)) {}

  absl::StatusOr<QuantFormat> FormatFor(Side side, int bits,
                                        int head_dim) const override {
    QuantFormat format;
    format.set_bits(bits);
    if (bits == 16) return format;
    const bool key = side == Side::kKey;
    const int group = key ? options_.key_group : options_.value_group;
    format.set_quantizer(options_.name);
    format.set_axis(key ? options_.key_axis : options_.value_axis);
    format.set_group_size(group == 0 ? head_dim : group);
    if (options_.complete) options_.complete(format);
    KVMIX_RETURN_IF_ERROR(
        AddContext(Validate(format, side, head_dim), SideName(side)));
    return format;
  }

  absl::StatusOr<std::unique_ptr<BlockCodec>> MakeCodec(
      const QuantFormat& format, Side side, int head_dim) const override {
    KVMIX_RETURN_IF_ERROR(Validate(format, side, head_dim));
    KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<const LevelScheme> scheme,
                           options_.scheme(format));
    return std::make_unique<LevelCodec>(format, side, head_dim,
                                        std::move(scheme));
  }

 private:
  absl::Status Validate(const QuantFormat& format, Side side,
                        int head_dim) const {
    KVMIX_RETURN_IF_ERROR(ValidateGroupFormat(
        format, options_.name, options_.min_bits, options_.max_bits, head_dim));
    if (format.packing() != QuantFormat::DENSE)
      return absl::InvalidArgumentError(
          absl::StrCat("packing must be DENSE with quantizer ", options_.name));
    const int group =
        side == Side::kKey ? options_.key_group : options_.value_group;
    if (options_.fixed_group && format.group_size() != group)
      return absl::InvalidArgumentError(
          absl::StrCat("group_size is ", format.group_size(), " but must be ",
                       group, " with quantizer ", options_.name));
    return absl::OkStatus();
  }

  const LevelQuantizerOptions options_;
};

}  // namespace

float LevelScheme::Scale(uint32_t stored) const {
  return ToFloat(Half{static_cast<uint16_t>(stored)});
}

void TableScheme::Levels(const uint32_t* codes, int n, float* levels) const {
  for (int i = 0; i < n; ++i) levels[i] = table_.value(codes[i]);
}

void TableScheme::NearestCodes(const float* x, int n, float scale,
                               uint32_t* codes) const {
  const float inverse = scale == 0 ? 0 : 1 / scale;
  const bool usable = std::isfinite(inverse);
  for (int i = 0; i < n; ++i)
    codes[i] = table_.Nearest(usable ? x[i] * inverse : x[i] / scale);
}

float MaxMagnitude(const float* x, int n) {
  float max = 0;
  for (int i = 0; i < n; ++i)
    if (std::isfinite(x[i])) max = std::max(max, std::fabs(x[i]));
  return max;
}

LevelCodec::LevelCodec(const QuantFormat& format, Side side, int head_dim,
                       std::unique_ptr<const LevelScheme> scheme)
    : GroupCodec(format, side, head_dim),
      scheme_(std::move(scheme)),
      bits_(scheme_->bits()),
      words_(PackedWords(format.group_size(), bits_)) {}

BlockBytes LevelCodec::bytes() const {
  return {.codes = int64_t{4} * num_groups() * words_,
          .scales = int64_t{scheme_->scale_bytes()} * num_groups()};
}

uint32_t* LevelCodec::Words(uint8_t* block, int group) const {
  return reinterpret_cast<uint32_t*>(block) + int64_t{group} * words_;
}

uint8_t* LevelCodec::ScaleOf(uint8_t* block, int group) const {
  return block + bytes().codes + int64_t{group} * scheme_->scale_bytes();
}

void LevelCodec::WriteGroups(const float* x, int first, int n,
                             uint8_t* block) const {
  std::vector<uint32_t> codes(group_size());
  for (int i = 0; i < n; ++i, x += group_size()) {
    const uint32_t scale = scheme_->Encode(x, group_size(), codes.data());
    PackCodes(codes.data(), group_size(), bits_, Words(block, first + i),
              words_);
    std::memcpy(ScaleOf(block, first + i), &scale, scheme_->scale_bytes());
  }
}

void LevelCodec::ReadGroups(const uint8_t* block, int first, int n, float* x,
                            int64_t stride) const {
  uint8_t* from = const_cast<uint8_t*>(block);
  std::vector<uint32_t> codes(group_size());
  for (int i = 0; i < n; ++i, x += stride) {
    uint32_t stored = 0;
    std::memcpy(&stored, ScaleOf(from, first + i), scheme_->scale_bytes());
    const float scale = scheme_->Scale(stored);
    const uint32_t* words = Words(from, first + i);
    for (int j = 0; j < group_size(); ++j)
      codes[j] = UnpackCode(words, words_, bits_, j);
    scheme_->Levels(codes.data(), group_size(), x);
    for (int j = 0; j < group_size(); ++j) x[j] *= scale;
  }
}

std::unique_ptr<Quantizer> MakeLevelQuantizer(LevelQuantizerOptions options) {
  return std::make_unique<LevelQuantizer>(std::move(options));
}

}  // namespace kvmix
