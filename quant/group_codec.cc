#include "quant/group_codec.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/base/check.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"
#include "quant/group_quantizer.h"

namespace kvmix {
namespace {

constexpr int kMaxHeadDim = 4096;

std::string DivisorsFrom8(int head_dim) {
  std::string list;
  for (int g = 8; g <= head_dim; ++g)
    if (head_dim % g == 0) absl::StrAppend(&list, list.empty() ? "" : ", ", g);
  return list;
}

}  // namespace

absl::Status CheckScheme(const QuantFormat& format,
                         const std::string& quantizer) {
  if (format.quantizer() == quantizer) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("quantizer is \"", format.quantizer(), "\" but must be \"",
                   quantizer, "\""));
}

absl::Status ValidateGroupFormat(const QuantFormat& format,
                                 const std::string& quantizer, int min_bits,
                                 int max_bits, int head_dim) {
  KVMIX_RETURN_IF_ERROR(CheckScheme(format, quantizer));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(head_dim, 8, kMaxHeadDim, "head_dim"));
  if (head_dim % 8 != 0)
    return absl::InvalidArgumentError(
        absl::StrCat("head_dim is ", head_dim, " but must be a multiple of 8"));
  if (format.bits() < min_bits || format.bits() > max_bits)
    return absl::InvalidArgumentError(
        absl::StrCat("bits is ", format.bits(), " but must be in [", min_bits,
                     ", ", max_bits, "], or 16 for no quantization"));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(format.group_size(), 1, kMaxGroupSize, "group_size"));
  if (format.axis() != QuantFormat::PER_CHANNEL &&
      format.axis() != QuantFormat::PER_TOKEN)
    return absl::InvalidArgumentError(
        absl::StrCat("axis is ", static_cast<int>(format.axis()),
                     " but must be PER_CHANNEL or PER_TOKEN"));
  if (format.axis() == QuantFormat::PER_TOKEN &&
      head_dim % format.group_size() != 0)
    return absl::InvalidArgumentError(absl::StrCat(
        "group_size is ", format.group_size(), " but must divide head_dim ",
        head_dim, " (PER_TOKEN); use ", DivisorsFrom8(head_dim)));
  return absl::OkStatus();
}

void CheckRange(const BlockCodec& codec, int first, int count) {
  KVMIX_CHECK(
      first >= 0 && count >= 0 && first + count <= codec.block_tokens() &&
      first % codec.granularity() == 0 && count % codec.granularity() == 0)
      << "tokens [" << first << ", " << first + count << ") of a block of "
      << codec.block_tokens() << ", granularity " << codec.granularity();
}

void Transpose(const float* in, int rows, int columns, int64_t in_stride,
               float* out, int64_t out_stride) {
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < columns; ++column)
      out[column * out_stride + row] = in[row * in_stride + column];
}

GroupCodec::GroupCodec(const QuantFormat& format, Side side, int head_dim,
                       bool at_once)
    : keys_(side == Side::kKey),
      per_channel_(format.axis() == QuantFormat::PER_CHANNEL),
      at_once_(at_once),
      head_dim_(head_dim),
      group_size_(format.group_size()),
      groups_per_token_(per_channel_ ? 0 : head_dim / format.group_size()) {}

namespace {

// Room for n floats, kept by the thread for the next call, since a decode step
// allocates nothing. A call within the call gets room of its own.
class Scratch {
 public:
  explicit Scratch(size_t n) : x_(std::exchange(kept_, {})) {
    if (x_.size() < n) x_.resize(n);
  }
  ~Scratch() { kept_ = std::move(x_); }
  float* data() { return x_.data(); }

 private:
  static thread_local std::vector<float> kept_;
  std::vector<float> x_;
};

thread_local std::vector<float> Scratch::kept_;

}  // namespace

void GroupCodec::Encode(const float* x, int64_t stride, int first, int count,
                        uint8_t* block) const {
  CheckRange(*this, first, count);
  const int size = per_channel_ ? group_size_ : head_dim_;
  const int rows = per_channel_ ? head_dim_ : count;
  Scratch groups(static_cast<size_t>(rows) * size);
  if (keys_ == per_channel_) {
    for (int row = 0; row < rows; ++row)
      std::copy_n(x + row * stride, size, groups.data() + row * size);
  } else {
    Transpose(x, size, rows, stride, groups.data(), size);
  }
  WriteGroups(groups.data(), first * groups_per_token_, NumGroups(count),
              block);
}

void GroupCodec::Decode(const uint8_t* block, int first, int count, float* x,
                        int64_t stride) const {
  CheckRange(*this, first, count);
  const int size = per_channel_ ? group_size_ : head_dim_;
  const int rows = per_channel_ ? head_dim_ : count;
  const int first_group = first * groups_per_token_;
  if (keys_ && per_channel_) {
    ReadGroups(block, first_group, rows, x, stride);
    return;
  }
  Scratch groups(static_cast<size_t>(rows) * size);
  ReadGroups(block, first_group, NumGroups(count), groups.data(), group_size_);
  if (keys_ == per_channel_) {
    for (int row = 0; row < rows; ++row)
      std::copy_n(groups.data() + row * size, size, x + row * stride);
  } else {
    Transpose(groups.data(), rows, size, size, x, stride);
  }
}

}  // namespace kvmix
