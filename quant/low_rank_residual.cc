// Quantizer "low_rank_residual": what another quantizer leaves of the error is
// stored as a product of two thin matrices (GEAR, Kang et al., arXiv
// 2403.05527, with "sparse_outliers" inside).
//   X - inner(X) = E ~ L R,  E [T, D],  L [T, rank],  R [rank, D]
// L R is the best approximation of that rank, found by power iteration, one
// rank after the other. A block of T tokens is
//   inner blocks [T / their tokens], each in 4-byte units
//   R [rank, D] half, L [rank, T] half
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "kvmix/base/half.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/validators.h"
#include "quant/low_rank_residual.pb.h"
#include "quant/wrapping_codec.h"

namespace kvmix {
namespace {

constexpr char kName[] = "low_rank_residual";
constexpr int kIterations = 30;

using Vector = std::vector<double>;

void Normalize(Vector& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  const double inverse = sum > 0 ? 1 / std::sqrt(sum) : 0;
  for (double& v : x) v *= inverse;
}

// E [rows, columns], row-major, becomes E - left right^T, the best of rank 1:
// right has norm 1.
void TakeRankOne(Vector& e, int rows, int columns, Vector& left,
                 Vector& right) {
  // Start from the longest row, which is never orthogonal to all of E.
  int longest = 0;
  double longest_norm = -1;
  for (int r = 0; r < rows; ++r) {
    double norm = 0;
    for (int c = 0; c < columns; ++c)
      norm += e[r * columns + c] * e[r * columns + c];
    if (norm > longest_norm) longest_norm = norm, longest = r;
  }
  right.assign(e.begin() + longest * columns,
               e.begin() + (longest + 1) * columns);
  left.assign(rows, 0);
  for (int i = 0; i < kIterations; ++i) {
    Normalize(right);
    for (int r = 0; r < rows; ++r) {
      double sum = 0;
      for (int c = 0; c < columns; ++c) sum += e[r * columns + c] * right[c];
      left[r] = sum;
    }
    if (i + 1 == kIterations) break;
    right.assign(columns, 0);
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < columns; ++c)
        right[c] += e[r * columns + c] * left[r];
  }
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c) e[r * columns + c] -= left[r] * right[c];
}

class LowRankCodec final : public BlockCodec {
 public:
  LowRankCodec(std::unique_ptr<BlockCodec> inner, Side side, int head_dim,
               int rank, int tokens)
      : inner_(std::move(inner)),
        side_(side),
        head_dim_(head_dim),
        rank_(rank),
        tokens_(tokens) {}

  int block_tokens() const override { return tokens_; }
  int granularity() const override { return tokens_; }
  BlockBytes bytes() const override {
    BlockBytes bytes = inner_->bytes();
    const int64_t padding = InnerStride() - bytes.total();
    const int blocks = tokens_ / inner_->block_tokens();
    bytes.codes *= blocks;
    bytes.scales *= blocks;
    bytes.zeros *= blocks;
    bytes.side_data = (bytes.side_data + padding) * blocks +
                      int64_t{2} * rank_ * (head_dim_ + tokens_);
    return bytes;
  }

  void Encode(const float* x, int64_t stride, int first, int count,
              uint8_t* block) const override {
    CheckRange(*this, first, count);
    if (count == 0) return;
    TokenTile tile(side_, head_dim_, x, stride, tokens_);
    TokenTile stored(side_, head_dim_, tokens_);
    const int part = inner_->block_tokens();
    for (int t = 0; t < tokens_; t += part) {
      const int64_t offset = OffsetOf(t, tile.stride());
      inner_->Encode(tile.x.data() + offset, tile.stride(), 0, part,
                     InnerBlock(block, t));
      inner_->Decode(InnerBlock(block, t), 0, part, stored.x.data() + offset,
                     stored.stride());
    }
    Vector error(static_cast<size_t>(tokens_) * head_dim_);
    for (int t = 0; t < tokens_; ++t)
      for (int d = 0; d < head_dim_; ++d)
        error[t * head_dim_ + d] =
            static_cast<double>(tile.at(t, d)) - stored.at(t, d);
    Vector left, right;
    for (int r = 0; r < rank_; ++r) {
      TakeRankOne(error, tokens_, head_dim_, left, right);
      for (int d = 0; d < head_dim_; ++d)
        Right(block, r)[d] = ToHalf(static_cast<float>(right[d]));
      for (int t = 0; t < tokens_; ++t)
        Left(block, r)[t] = ToHalf(static_cast<float>(left[t]));
    }
  }

  void Decode(const uint8_t* block, int first, int count, float* x,
              int64_t stride) const override {
    CheckRange(*this, first, count);
    if (count == 0) return;
    uint8_t* from = const_cast<uint8_t*>(block);
    const int part = inner_->block_tokens();
    for (int t = 0; t < tokens_; t += part)
      inner_->Decode(InnerBlock(from, t), 0, part, x + OffsetOf(t, stride),
                     stride);
    const bool keys = side_ == Side::kKey;
    for (int r = 0; r < rank_; ++r) {
      for (int t = 0; t < tokens_; ++t) {
        const float left = ToFloat(Left(from, r)[t]);
        for (int d = 0; d < head_dim_; ++d)
          x[keys ? d * stride + t : t * stride + d] +=
              left * ToFloat(Right(from, r)[d]);
      }
    }
  }

 private:
  int64_t InnerStride() const { return (inner_->bytes().total() + 3) / 4 * 4; }
  int64_t OffsetOf(int token, int64_t stride) const {
    return side_ == Side::kKey ? token : token * stride;
  }
  uint8_t* InnerBlock(uint8_t* block, int token) const {
    return block + token / inner_->block_tokens() * InnerStride();
  }
  Half* Right(uint8_t* block, int rank) const {
    return reinterpret_cast<Half*>(InnerBlock(block, tokens_)) +
           rank * head_dim_;
  }
  Half* Left(uint8_t* block, int rank) const {
    return Right(block, rank_) + rank * tokens_;
  }

  const std::unique_ptr<BlockCodec> inner_;
  const Side side_;
  const int head_dim_, rank_, tokens_;
};

class LowRankResidual final : public Quantizer {
 public:
  LowRankResidual(std::unique_ptr<Quantizer> inner, int rank, int tokens)
      : inner_(std::move(inner)), rank_(rank), tokens_(tokens) {}

  absl::StatusOr<QuantFormat> FormatFor(Side side, int bits,
                                        int head_dim) const override {
    KVMIX_ASSIGN_OR_RETURN(const QuantFormat inner,
                           inner_->FormatFor(side, bits, head_dim));
    if (bits == 16) return inner;
    LowRankResidualFormat own;
    *own.mutable_inner() = inner;
    own.set_rank(rank_);
    own.set_tokens(tokens_);
    const QuantFormat format = WrapFormat(kName, inner, own);
    KVMIX_RETURN_IF_ERROR(
        AddContext(MakeCodec(format, side, head_dim).status(), SideName(side)));
    return format;
  }

  absl::StatusOr<std::unique_ptr<BlockCodec>> MakeCodec(
      const QuantFormat& format, Side side, int head_dim) const override {
    KVMIX_RETURN_IF_ERROR(CheckScheme(format, kName));
    KVMIX_ASSIGN_OR_RETURN(const auto own,
                           OptionsOf<LowRankResidualFormat>(format));
    KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<BlockCodec> inner,
                           MakeInnerCodec(format, own.inner(), side, head_dim));
    KVMIX_RETURN_IF_ERROR(
        ValidateIsInRange(own.tokens(), 1, 1 << 16, "options.tokens"));
    KVMIX_RETURN_IF_ERROR(ValidateIsInRange(
        own.rank(), 1, std::min(own.tokens(), head_dim), "options.rank"));
    KVMIX_RETURN_IF_ERROR(ValidateDivides(inner->block_tokens(), own.tokens(),
                                          "tokens of a block of options.inner",
                                          "options.tokens"));
    return std::make_unique<LowRankCodec>(std::move(inner), side, head_dim,
                                          own.rank(), own.tokens());
  }

 private:
  const std::unique_ptr<Quantizer> inner_;
  const int rank_, tokens_;
};

const bool kRegistered = Registry<Quantizer>::Get().Add<LowRankResidualOptions>(
    kName, "any other quantizer, and a low-rank matrix for its error (GEAR)",
    [](const LowRankResidualOptions& options) -> Registry<Quantizer>::Result {
      KVMIX_RETURN_IF_ERROR(
          ValidateIsNonNegative(options.rank(), "options.rank"));
      KVMIX_RETURN_IF_ERROR(
          ValidateIsNonNegative(options.tokens(), "options.tokens"));
      KVMIX_ASSIGN_OR_RETURN(std::unique_ptr<Quantizer> inner,
                             MakeInnerQuantizer(options.inner()));
      return std::make_unique<LowRankResidual>(
          std::move(inner), options.rank() == 0 ? 2 : options.rank(),
          options.tokens() == 0 ? 128 : options.tokens());
    });

}  // namespace
}  // namespace kvmix
