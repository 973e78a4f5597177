#include "models/weight_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kvmix/base/check.h"
#include "kvmix/base/half.h"

namespace kvmix {
namespace {

bool IsFloatType(ElementType type) {
  return type == ElementType::kF32 || type == ElementType::kF16 ||
         type == ElementType::kBF16;
}

WeightLayout LayoutOfFloats(ComputeType compute, ElementType stored) {
  if (compute == ComputeType::kInt8) return WeightLayout::kBytes;
  if (compute == ComputeType::kBFloat16) return WeightLayout::kBFloat16;
  if (stored == ElementType::kF16) return WeightLayout::kFloat16;
  if (stored == ElementType::kBF16) return WeightLayout::kBFloat16;
  return WeightLayout::kFloat32;
}

WeightLayout ChooseLayout(ComputeType compute, ElementType stored) {
  switch (stored) {
    case ElementType::kF32:
    case ElementType::kF16:
    case ElementType::kBF16:
      return LayoutOfFloats(compute, stored);
    case ElementType::kQ4_0:
      return WeightLayout::kNibbles;
    case ElementType::kQ4_1:
      return WeightLayout::kNibblesMin;
    case ElementType::kQ5_0:
    case ElementType::kQ8_0:
      return WeightLayout::kBytes;
    case ElementType::kQ5_1:
      return WeightLayout::kBytesMin;
    case ElementType::kQ4_K:
      return WeightLayout::kNibblesMinFloat;
    case ElementType::kQ5_K:
      return WeightLayout::kBytesMinFloat;
    case ElementType::kQ6_K:
      return WeightLayout::kBytesHalfBlocks;
  }
  return WeightLayout::kFloat32;
}

// What SetCodeBlock needs to know of a layout of codes.
struct CodeFormat {
  int bits;
  bool float_scales;
  bool has_minimum;
  int num_scales;  // a block and output
};
CodeFormat CodeFormatOf(WeightLayout layout) {
  switch (layout) {
    case WeightLayout::kNibbles:
      return {4, false, false, 1};
    case WeightLayout::kNibblesMin:
      return {4, false, true, 1};
    case WeightLayout::kNibblesMinFloat:
      return {4, true, true, 1};
    case WeightLayout::kBytes:
      return {8, false, false, 1};
    case WeightLayout::kBytesMin:
      return {8, false, true, 1};
    case WeightLayout::kBytesMinFloat:
      return {8, true, true, 1};
    case WeightLayout::kBytesHalfBlocks:
      return {8, true, false, 2};
    default:
      break;
  }
  KVMIX_CHECK(false) << "no layout of codes";
  return {};
}

template <class T>
void Store(T value, uint8_t* to) {
  std::memcpy(to, &value, sizeof(T));
}

// Up to 32 weights as Q8_0 has them.
CodeBlock RoundTo8Bits(const float* w, int64_t count) {
  float max = 0;
  for (int64_t i = 0; i < count; ++i) max = std::max(max, std::abs(w[i]));
  const float scale = ToFloat(ToHalf(std::min(max / 127, 65504.0f)));
  CodeBlock block;
  block.scale[0] = block.scale[1] = scale;
  for (int64_t i = 0; i < 32; ++i) {
    const float q = i < count && scale > 0 ? std::nearbyint(w[i] / scale) : 0;
    block.codes[i] = static_cast<uint8_t>(
        128 + static_cast<int>(std::clamp(q, -127.0f, 127.0f)));
  }
  return block;
}

// Word i and the code's place in it, of input k of a block.
struct CodePlace {
  int word;
  int shift;
};
CodePlace PlaceOf(int bits, int k) {
  if (bits == 8) return {k / 4, 8 * (k % 4)};
  return {k / 8, k % 8 < 4 ? 8 * (k % 8) : 8 * (k % 8) - 28};
}

}  // namespace

absl::string_view ComputeTypeName(ComputeType compute) {
  switch (compute) {
    case ComputeType::kFloat32:
      return "FLOAT32";
    case ComputeType::kBFloat16:
      return "BFLOAT16";
    case ComputeType::kInt8:
      return "INT8";
  }
  return "";
}

int64_t WeightMatrix::BytesFor(ComputeType compute, ElementType stored,
                               int64_t num_inputs, int64_t num_outputs) {
  const int64_t blocks = (num_inputs + kBlockInputs - 1) / kBlockInputs;
  const int64_t panels = (num_outputs + kPanelOutputs - 1) / kPanelOutputs;
  return panels * blocks * WeightBlockBytes(ChooseLayout(compute, stored));
}

WeightMatrix::WeightMatrix(ComputeType compute, ElementType stored,
                           int64_t num_inputs, int64_t num_outputs,
                           WeightArena& arena)
    : stored_(stored),
      layout_(ChooseLayout(compute, stored)),
      num_inputs_(num_inputs),
      num_outputs_(num_outputs),
      data_(arena.Take(bytes())) {
  KVMIX_CHECK(num_inputs > 0 && num_outputs > 0 &&
              num_inputs % LayoutOf(stored).elements == 0)
      << num_inputs << " inputs of " << std::string(LayoutOf(stored).name);
}

int64_t WeightMatrix::width(int64_t p) const {
  return std::min(kPanelOutputs, num_outputs_ - p * kPanelOutputs);
}

void WeightMatrix::SetRows(int64_t first, int64_t count, const uint8_t* stored,
                           const float* values) {
  KVMIX_CHECK(first >= 0 && count >= 0 && first + count <= num_outputs_);
  const int64_t row_bytes =
      num_inputs_ / LayoutOf(stored_).elements * LayoutOf(stored_).bytes;
  std::vector<CodeBlock> codes(num_blocks());
  for (int64_t r = 0; r < count; ++r) {
    const float* const row = values + r * num_inputs_;
    if (layout_ == WeightLayout::kFloat32 ||
        layout_ == WeightLayout::kFloat16 ||
        layout_ == WeightLayout::kBFloat16) {
      SetFloatRow(first + r, row);
      continue;
    }
    if (IsFloatType(stored_)) {
      for (int64_t b = 0; b < num_blocks(); ++b) {
        codes[b] = RoundTo8Bits(
            row + b * kBlockInputs,
            std::min(kBlockInputs, num_inputs_ - b * kBlockInputs));
      }
    } else {
      UnpackCodes(stored_, stored + r * row_bytes, num_inputs_, codes.data());
    }
    for (int64_t b = 0; b < num_blocks(); ++b)
      SetCodeBlock(first + r, b, codes[b]);
  }
}

void WeightMatrix::SetFloatRow(int64_t n, const float* values) {
  const int64_t lane = n % kPanelOutputs;
  for (int64_t k = 0; k < num_inputs_; ++k) {
    uint8_t* const to = block(n, k / kBlockInputs);
    const int64_t in_block = k % kBlockInputs;
    const int64_t plain = in_block * kPanelOutputs + lane;
    if (layout_ == WeightLayout::kFloat32) {
      Store(values[k], to + 4 * plain);
    } else if (layout_ == WeightLayout::kFloat16) {
      Store(ToHalf(values[k]).bits, to + 2 * plain);
    } else {
      const int64_t pair = in_block / 2 * kPanelOutputs + lane;
      Store(ToBFloat16(values[k]).bits, to + 4 * pair + 2 * (in_block % 2));
    }
  }
}

void WeightMatrix::SetCodeBlock(int64_t n, int64_t b, const CodeBlock& codes) {
  const CodeFormat format = CodeFormatOf(layout_);
  const int64_t lane = n % kPanelOutputs;
  uint8_t* to = block(n, b);
  const auto put = [&](float x) {
    if (format.float_scales) {
      Store(x, to + 4 * lane);
    } else {
      Store(ToHalf(x).bits, to + 2 * lane);
    }
    to += (format.float_scales ? 4 : 2) * kPanelOutputs;
  };
  for (int i = 0; i < format.num_scales; ++i) put(codes.scale[i]);
  if (format.has_minimum) put(codes.minimum);
  uint32_t words[8] = {};
  for (int k = 0; k < kBlockInputs; ++k) {
    const CodePlace place = PlaceOf(format.bits, k);
    words[place.word] |= uint32_t{codes.codes[k]} << place.shift;
  }
  for (int i = 0; i < format.bits; ++i)
    Store(words[i], to + 4 * (i * kPanelOutputs + lane));
}

void WeightMatrix::CopyRow(int64_t n, float* out) const {
  KVMIX_CHECK(n >= 0 && n < num_outputs_);
  alignas(128) float decoded[kBlockInputs * kPanelOutputs];
  const uint8_t* const from = panel(n / kPanelOutputs);
  for (int64_t b = 0; b < num_blocks(); ++b) {
    DecodePanelBlocks(layout_, from + b * WeightBlockBytes(layout_), 1,
                      decoded);
    const int64_t first = b * kBlockInputs;
    const int64_t count = std::min(kBlockInputs, num_inputs_ - first);
    for (int64_t k = 0; k < count; ++k)
      out[first + k] = decoded[k * kPanelOutputs + n % kPanelOutputs];
  }
}

}  // namespace kvmix
