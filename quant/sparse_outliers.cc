// Quantizer "sparse_outliers": dense and sparse (KVQuant, Hooper et al., arXiv
// 2401.18079; GEAR, Kang et al., arXiv 2403.05527). Of the tokens that are
// written together, the share of elements farthest from the mean is kept in
// half precision with its places; all others go to another quantizer, which
// sees the mean in their place. The mean is that of the element's channel where
// several tokens are written together, else that of the token.
//
// Behind the inner block, for each granule: values [n] half, then for each
// granule places [n], in 1 byte where a granule has at most 256 elements, else
// in 2; element t * D + d of the granule.
#include <cstring>
#include <memory>
#include <vector>

#include "kvmix/base/half.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"
#include "quant/outliers.h"
#include "quant/sparse_outliers.pb.h"
#include "quant/wrapping_codec.h"

namespace kvmix {
namespace {

constexpr char kName[] = "sparse_outliers";
constexpr double kDefaultFraction = 0.01;
constexpr int kMaxPlaces = 1 << 16;

class SparseCodec final : public WrappingCodec {
 public:
  SparseCodec(std::unique_ptr<BlockCodec> inner, Side side, int head_dim,
              double fraction)
      : WrappingCodec(std::move(inner), side, head_dim),
        elements_(granularity() * head_dim),
        count_(OutlierCount(fraction, elements_)),
        place_bytes_(elements_ <= 256 ? 1 : 2) {}

  BlockBytes bytes() const override {
    BlockBytes bytes = inner().bytes();
    bytes.side_data += int64_t{granules()} * count_ * (2 + place_bytes_);
    return bytes;
  }
  void Encode(const float* x, int64_t stride, int first, int count,
              uint8_t* block) const override {
    TokenTile tile(side(), head_dim(), x, stride, count);
    for (int t = 0; t < count; t += granularity())
      TakeOutliers(tile, t, (first + t) / granularity(), block);
    inner().Encode(tile.x.data(), tile.stride(), first, count, block);
  }
  void Decode(const uint8_t* block, int first, int count, float* x,
              int64_t stride) const override {
    inner().Decode(block, first, count, x, stride);
    const bool keys = side() == Side::kKey;
    for (int t = 0; t < count; t += granularity()) {
      const int granule = (first + t) / granularity();
      for (int i = 0; i < count_; ++i) {
        Half value;
        uint32_t place = 0;
        std::memcpy(&value, block + ValueAt(granule, i), 2);
        std::memcpy(&place, block + PlaceAt(granule, i), place_bytes_);
        const int64_t token = t + place / head_dim();
        const int64_t channel = place % head_dim();
        x[keys ? channel * stride + token : token * stride + channel] =
            ToFloat(value);
      }
    }
  }

 private:
  int granules() const { return block_tokens() / granularity(); }
  int64_t ValueAt(int granule, int i) const {
    return inner().bytes().total() + int64_t{2} * (granule * count_ + i);
  }
  int64_t PlaceAt(int granule, int i) const {
    return inner().bytes().total() + int64_t{2} * granules() * count_ +
           int64_t{place_bytes_} * (granule * count_ + i);
  }

  // The granule that begins at token `first` of the tile.
  void TakeOutliers(TokenTile& tile, int first, int granule,
                    uint8_t* block) const {
    std::vector<float> rows(elements_);
    for (int e = 0; e < elements_; ++e)
      rows[e] = tile.at(first + e / head_dim(), e % head_dim());
    const Outliers outliers =
        FarthestFromMean(rows.data(), granularity(), head_dim(), count_);
    for (int i = 0; i < count_; ++i) {
      const int at = outliers.places[i];
      const Half value = ToHalf(rows[at]);
      const uint32_t place = static_cast<uint32_t>(at);
      std::memcpy(block + ValueAt(granule, i), &value, 2);
      std::memcpy(block + PlaceAt(granule, i), &place, place_bytes_);
      tile.at(first + at / head_dim(), at % head_dim()) = outliers.MeanOf(at);
    }
  }

  const int elements_;  // of a granule
  const int count_;     // outliers of a granule
  const int place_bytes_;
};

absl::Status ValidateFraction(double fraction) {
  if (fraction > 0 && fraction <= 0.5) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "options.fraction is ", fraction, " but must be in (0, 0.5]"));
}

class SparseOutliers final : public Quantizer {
 public:
  SparseOutliers(std::unique_ptr<Quantizer> inner, double fraction)
      : inner_(std::move(inner)), fraction_(fraction) {}

  absl::StatusOr<QuantFormat> FormatFor(Side side, int bits,
                                        int head_dim) const override {
    KVMIX_ASSIGN_OR_RETURN(const QuantFormat inner,
                           inner_->FormatFor(side, bits, head_dim));
    if (bits == 16) return inner;
    SparseOutliersFormat own;
    *own.mutable_inner() = inner;
    own.set_fraction(fraction_);
    return WrapFormat(kName, inner, own);
  }

  absl::StatusOr<std::unique_ptr<BlockCodec>> MakeCodec(
      const QuantFormat& format, Side side, int head_dim) const override {
    KVMIX_RETURN_IF_ERROR(CheckScheme(format, kName));
    KVMIX_ASSIGN_OR_RETURN(const auto own,
                           OptionsOf<SparseOutliersFormat>(format));
    KVMIX_RETURN_IF_ERROR(ValidateFraction(own.fraction()));
    KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<BlockCodec> inner,
                           MakeInnerCodec(format, own.inner(), side, head_dim));
    KVMIX_RETURN_IF_ERROR(
        ValidateIsInRange(inner->granularity() * head_dim, 1, kMaxPlaces,
                          "elements that options.inner writes together"));
    return std::make_unique<SparseCodec>(std::move(inner), side, head_dim,
                                         own.fraction());
  }

 private:
  const std::unique_ptr<Quantizer> inner_;
  const double fraction_;
};

const bool kRegistered = Registry<Quantizer>::Get().Add<SparseOutliersOptions>(
    kName, "outliers in half precision, the others by any other quantizer",
    [](const SparseOutliersOptions& options) -> Registry<Quantizer>::Result {
      const double fraction =
          options.fraction() == 0 ? kDefaultFraction : options.fraction();
      KVMIX_RETURN_IF_ERROR(ValidateFraction(fraction));
      KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<Quantizer> inner,
                             MakeInnerQuantizer(options.inner()));
      return std::make_unique<SparseOutliers>(std::move(inner), fraction);
    });

}  // namespace
}  // namespace kvmix
