// Quantizer "qjl": keys as signs of random projections and a norm (QJL, Zandieh
// et al., arXiv 2406.03482). With rows s_i of S [m, D] as long and as random as
// normal vectors, m = bits * D,
//   <q, k> ~ |k| sqrt(pi/2) / m * sum_i <s_i, q> sign(<s_i, k>)
// without bias. That is the product of q with
//   k_hat = |k| sqrt(pi/2) / m * S^T sign(S k)
// which is what reading gives. Each D rows of S are orthogonal, as the authors
// recommend. Nothing is stored but m signs and |k|, a half, for each token.
#include <cmath>
#include <memory>
#include <vector>

#include "kvmix/base/half.h"
#include "kvmix/base/random.h"
#include "kvmix/base/registry.h"
#include "quant/qjl.pb.h"
#include "quant/wrapping_codec.h"

namespace kvmix {
namespace {

constexpr char kName[] = "qjl";

// Rows of normal numbers, made orthogonal and of length sqrt(D). [D, D]
void AppendOrthogonalRows(int dim, CounterRandom& random,
                          std::vector<float>& rows) {
  std::vector<double> basis(static_cast<size_t>(dim) * dim);
  for (double& v : basis) v = random.Normal();
  for (int i = 0; i < dim; ++i) {
    double* row = basis.data() + i * dim;
    for (int pass = 0; pass < 2; ++pass) {
      for (int j = 0; j < i; ++j) {
        const double* other = basis.data() + j * dim;
        double dot = 0;
        for (int d = 0; d < dim; ++d) dot += row[d] * other[d];
        for (int d = 0; d < dim; ++d) row[d] -= dot * other[d];
      }
    }
    double norm = 0;
    for (int d = 0; d < dim; ++d) norm += row[d] * row[d];
    for (int d = 0; d < dim; ++d) row[d] /= std::sqrt(norm);
  }
  for (const double v : basis)
    rows.push_back(static_cast<float>(v * std::sqrt(dim)));
}

class QjlCodec final : public GroupCodec {
 public:
  QjlCodec(const QuantFormat& format, Side side, int head_dim, uint64_t seed)
      : GroupCodec(format, side, head_dim),
        head_dim_(head_dim),
        signs_(format.bits() * head_dim) {
    CounterRandom random(seed, 0);
    for (int i = 0; i < format.bits(); ++i)
      AppendOrthogonalRows(head_dim, random, rows_);
  }

  BlockBytes bytes() const override {
    return {.codes = int64_t{num_groups()} * signs_ / 8,
            .scales = int64_t{2} * num_groups()};
  }

 private:
  uint8_t* Signs(uint8_t* block, int group) const {
    return block + int64_t{group} * signs_ / 8;
  }
  Half* Norms(uint8_t* block) const {
    return reinterpret_cast<Half*>(block + bytes().codes);
  }

  void WriteGroups(const float* x, int first, int n,
                   uint8_t* block) const override {
    for (int g = 0; g < n; ++g, x += head_dim_) {
      double squares = 0;
      for (int d = 0; d < head_dim_; ++d)
        squares += static_cast<double>(x[d]) * x[d];
      Norms(block)[first + g] = ToHalf(static_cast<float>(std::sqrt(squares)));
      uint8_t* signs = Signs(block, first + g);
      for (int i = 0; i < signs_; ++i) {
        const float* row = rows_.data() + int64_t{i} * head_dim_;
        float dot = 0;
        for (int d = 0; d < head_dim_; ++d) dot += row[d] * x[d];
        if (dot >= 0) signs[i / 8] |= static_cast<uint8_t>(1u << (i % 8));
      }
    }
  }

  void ReadGroups(const uint8_t* block, int first, int n, float* x,
                  int64_t stride) const override {
    uint8_t* from = const_cast<uint8_t*>(block);
    for (int g = 0; g < n; ++g, x += stride) {
      const float scale = ToFloat(Norms(from)[first + g]) *
                          static_cast<float>(std::sqrt(M_PI / 2) / signs_);
      const uint8_t* signs = Signs(from, first + g);
      std::fill_n(x, head_dim_, 0.0f);
      for (int i = 0; i < signs_; ++i) {
        const float* row = rows_.data() + int64_t{i} * head_dim_;
        const float weight =
            (signs[i / 8] >> (i % 8) & 1) != 0 ? scale : -scale;
        for (int d = 0; d < head_dim_; ++d) x[d] += weight * row[d];
      }
    }
  }

  const int head_dim_;
  const int signs_;          // m
  std::vector<float> rows_;  // S [m, D]
};

class Qjl final : public Quantizer {
 public:
  explicit Qjl(const QjlOptions& options) : options_(options) {}

  absl::StatusOr<QuantFormat> FormatFor(Side side, int bits,
                                        int head_dim) const override {
    QuantFormat format;
    format.set_bits(bits);
    if (bits == 16) return format;
    format.set_quantizer(kName);
    format.set_axis(QuantFormat::PER_TOKEN);
    format.set_group_size(head_dim);
    format.mutable_options()->PackFrom(options_);
    KVMIX_RETURN_IF_ERROR(
        AddContext(Validate(format, side, head_dim), SideName(side)));
    return format;
  }

  absl::StatusOr<std::unique_ptr<BlockCodec>> MakeCodec(
      const QuantFormat& format, Side side, int head_dim) const override {
    KVMIX_RETURN_IF_ERROR(Validate(format, side, head_dim));
    KVMIX_ASSIGN_OR_RETURN(const auto own, OptionsOf<QjlOptions>(format));
    return std::make_unique<QjlCodec>(format, side, head_dim, own.seed());
  }

 private:
  static absl::Status Validate(const QuantFormat& format, Side side,
                               int head_dim) {
    KVMIX_RETURN_IF_ERROR(ValidateGroupFormat(format, kName, 1, 8, head_dim));
    if (side == Side::kKey && format.axis() == QuantFormat::PER_TOKEN &&
        format.group_size() == head_dim)
      return absl::OkStatus();
    return absl::InvalidArgumentError(
        "quantizer qjl stores keys PER_TOKEN with group_size head_dim alone; "
        "combine it with one for values by quantizer \"per_side\"");
  }

  const QjlOptions options_;
};

const bool kRegistered = Registry<Quantizer>::Get().Add<QjlOptions>(
    kName, "keys as signs of random projections and a norm (QJL)",
    [](const QjlOptions& options) -> Registry<Quantizer>::Result {
      return std::make_unique<Qjl>(options);
    });

}  // namespace
}  // namespace kvmix
