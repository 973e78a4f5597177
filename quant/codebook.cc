// Quantizer "codebook": levels that are not equally spaced (KVQuant's NUQ,
// Hooper et al., arXiv 2401.18079; with "sparse_outliers" around it, its
// dense-and-sparse format).
//   zero = half(min), scale = half(max - min)      of a group
//   x_hat = level[code] * scale + zero             2^bits levels in [0, 1]
// Levels are fixed in the format, or each block has its own: those of least
// squared error, found by k-means from equally spaced ones, stored as halves.
//   codes [groups, words] uint32, scales [groups] half, zeros [groups] half,
//   levels [2^bits] half where they are the block's own
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "kvmix/base/half.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"
#include "quant/bit_packing.h"
#include "quant/codebook.pb.h"
#include "quant/group_quantizer.h"
#include "quant/level_codec.h"
#include "quant/share_histogram.h"
#include "quant/wrapping_codec.h"

namespace kvmix {
namespace {

constexpr char kName[] = "codebook";
constexpr int kMaxBits = 6;
constexpr int kIterations = 12;
constexpr int kDefaultGroup = 32;
constexpr float kMaxHalf = 65504;

// Levels of least squared error for u [n], weighted by weights [n].
std::vector<float> KMeans(const std::vector<float>& u,
                          const std::vector<double>& weights, int bits) {
  std::vector<float> levels = EquallySpacedLevels(bits);
  for (int i = 0; i < kIterations; ++i) {
    const LevelTable table(levels);
    std::vector<double> sum(levels.size()), weight(levels.size());
    for (size_t j = 0; j < u.size(); ++j) {
      const uint32_t code = table.Nearest(u[j]);
      sum[code] += weights[j] * u[j];
      weight[code] += weights[j];
    }
    for (size_t c = 0; c < levels.size(); ++c)
      if (weight[c] > 0) levels[c] = static_cast<float>(sum[c] / weight[c]);
  }
  for (float& level : levels) level = ToFloat(ToHalf(level));
  return levels;
}

class CodebookCodec final : public GroupCodec {
 public:
  CodebookCodec(const QuantFormat& format, Side side, int head_dim,
                std::vector<float> levels)
      : GroupCodec(format, side, head_dim, /*at_once=*/levels.empty()),
        bits_(format.bits()),
        words_(PackedWords(format.group_size(), bits_)),
        levels_(std::move(levels)) {}

  BlockBytes bytes() const override {
    return {.codes = int64_t{4} * num_groups() * words_,
            .scales = int64_t{2} * num_groups(),
            .zeros = int64_t{2} * num_groups(),
            .side_data = levels_.empty() ? int64_t{2} << bits_ : 0};
  }

 private:
  uint32_t* Words(uint8_t* block, int group) const {
    return reinterpret_cast<uint32_t*>(block) + int64_t{group} * words_;
  }
  Half* Scales(uint8_t* block) const {
    return reinterpret_cast<Half*>(Words(block, num_groups()));
  }
  Half* Zeros(uint8_t* block) const { return Scales(block) + num_groups(); }
  Half* Levels(uint8_t* block) const { return Zeros(block) + num_groups(); }

  // Shares of their groups' ranges; ranges go to the block.
  std::vector<float> Shares(const float* x, int first, int n,
                            uint8_t* block) const {
    std::vector<float> u(static_cast<size_t>(n) * group_size());
    for (int g = 0; g < n; ++g) {
      const float* group = x + int64_t{g} * group_size();
      const auto [min, max] = std::minmax_element(group, group + group_size());
      const Half zero = ToHalf(std::clamp(*min, -kMaxHalf, kMaxHalf));
      const Half scale = ToHalf(std::min(*max - *min, kMaxHalf));
      Zeros(block)[first + g] = zero;
      Scales(block)[first + g] = scale;
      const float size = ToFloat(scale);
      for (int i = 0; i < group_size(); ++i)
        u[g * group_size() + i] =
            size == 0 ? 0 : (group[i] - ToFloat(zero)) / size;
    }
    return u;
  }

  void WriteGroups(const float* x, int first, int n,
                   uint8_t* block) const override {
    const std::vector<float> u = Shares(x, first, n, block);
    std::vector<float> levels = levels_;
    if (levels.empty()) {
      std::vector<double> weights(u.size());
      for (size_t i = 0; i < u.size(); ++i) {
        const double scale =
            ToFloat(Scales(block)[first + static_cast<int>(i) / group_size()]);
        weights[i] = scale * scale;
      }
      levels = KMeans(u, weights, bits_);
      for (size_t i = 0; i < levels.size(); ++i)
        Levels(block)[i] = ToHalf(levels[i]);
    }
    const LevelTable table(levels);
    std::vector<uint32_t> codes(group_size());
    for (int g = 0; g < n; ++g) {
      for (int i = 0; i < group_size(); ++i)
        codes[i] = table.Nearest(u[g * group_size() + i]);
      PackCodes(codes.data(), group_size(), bits_, Words(block, first + g),
                words_);
    }
  }

  void ReadGroups(const uint8_t* block, int first, int n, float* x,
                  int64_t stride) const override {
    uint8_t* from = const_cast<uint8_t*>(block);
    std::vector<float> levels = levels_;
    if (levels.empty())
      for (int i = 0; i < 1 << bits_; ++i)
        levels.push_back(ToFloat(Levels(from)[i]));
    for (int g = 0; g < n; ++g, x += stride) {
      const float scale = ToFloat(Scales(from)[first + g]);
      const float zero = ToFloat(Zeros(from)[first + g]);
      for (int i = 0; i < group_size(); ++i)
        x[i] = levels[UnpackCode(Words(from, first + g), words_, bits_, i)] *
                   scale +
               zero;
    }
  }

  const int bits_;
  const int words_;  // of a group
  const std::vector<float> levels_;
};

absl::Status ValidateLevels(int bits, const std::vector<float>& levels) {
  if (levels.empty()) return absl::OkStatus();
  bool good = levels.size() == size_t{1} << bits;
  for (size_t i = 0; i < levels.size(); ++i)
    good = good && levels[i] >= 0 && levels[i] <= 1 &&
           (i == 0 || levels[i] > levels[i - 1]);
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("levels for ", bits, " bits must be ", 1 << bits,
                   " ascending numbers in [0, 1]"));
}

absl::StatusOr<CodebookOptions::Side> Completed(CodebookOptions::Side side,
                                                QuantFormat::Axis axis) {
  if (!QuantFormat::Axis_IsValid(side.axis()))
    return absl::InvalidArgumentError("axis must be PER_CHANNEL or PER_TOKEN");
  if (side.axis() == QuantFormat::AXIS_UNSPECIFIED) side.set_axis(axis);
  if (side.group_size() == 0) side.set_group_size(kDefaultGroup);
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(side.group_size(), 1, kMaxGroupSize, "group_size"));
  for (const CodebookOptions::Levels& levels : side.levels()) {
    KVMIX_RETURN_IF_ERROR(
        ValidateIsInRange(levels.bits(), 1, kMaxBits, "levels.bits"));
    KVMIX_RETURN_IF_ERROR(ValidateLevels(
        levels.bits(), {levels.level().begin(), levels.level().end()}));
  }
  return side;
}

class Codebook final : public Quantizer {
 public:
  Codebook(CodebookOptions::Side key, CodebookOptions::Side value)
      : key_(std::move(key)), value_(std::move(value)) {}

  absl::StatusOr<QuantFormat> FormatFor(Side side, int bits,
                                        int head_dim) const override {
    QuantFormat format;
    format.set_bits(bits);
    if (bits == 16) return format;
    const CodebookOptions::Side& options = side == Side::kKey ? key_ : value_;
    format.set_quantizer(kName);
    format.set_axis(options.axis());
    format.set_group_size(options.group_size());
    CodebookFormat own;
    for (const CodebookOptions::Levels& levels : options.levels())
      if (levels.bits() == bits) *own.mutable_level() = levels.level();
    format.mutable_options()->PackFrom(own);
    KVMIX_RETURN_IF_ERROR(
        AddContext(MakeCodec(format, side, head_dim).status(), SideName(side)));
    return format;
  }

  absl::StatusOr<std::unique_ptr<BlockCodec>> MakeCodec(
      const QuantFormat& format, Side side, int head_dim) const override {
    KVMIX_RETURN_IF_ERROR(
        ValidateGroupFormat(format, kName, 1, kMaxBits, head_dim));
    KVMIX_ASSIGN_OR_RETURN(const auto own, OptionsOf<CodebookFormat>(format));
    std::vector<float> levels(own.level().begin(), own.level().end());
    KVMIX_RETURN_IF_ERROR(ValidateLevels(format.bits(), levels));
    return std::make_unique<CodebookCodec>(format, side, head_dim,
                                           std::move(levels));
  }

 private:
  const CodebookOptions::Side key_, value_;
};

const bool kRegistered = Registry<Quantizer>::Get().Add<CodebookOptions>(
    kName, "unequal levels: fixed ones, or each block's own by k-means",
    [](const CodebookOptions& options) -> Registry<Quantizer>::Result {
      auto key = Completed(options.key(), QuantFormat::PER_CHANNEL);
      if (!key.ok()) return AddContext(key.status(), "options.key");
      auto value = Completed(options.value(), QuantFormat::PER_TOKEN);
      if (!value.ok()) return AddContext(value.status(), "options.value");
      return std::make_unique<Codebook>(*std::move(key), *std::move(value));
    });

}  // namespace
}  // namespace kvmix
