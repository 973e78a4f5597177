// Where one number of a packed block lies on a device. Host and device. For
// what reads few numbers, or in no order: attention reads words of many.
#pragma once

#include <cstdint>

#include "attention/cuda_attention_params.h"
#include "kvmix/base/host_device.h"
#include "quant/cuda_layout.h"

namespace kvmix {

struct CudaCode {
  uint32_t code;
  int group;  // place of its scale, and of its zero point
  bool last;  // the eleventh of KVmix's words
};

// kString
KVMIX_HD CudaCode StringCode(const CudaFormat& format, const uint8_t* block,
                             int head_dim, int token, int channel) {
  const int group = format.per_channel ? channel
                                       : token * (head_dim / format.group) +
                                             channel / format.group;
  const int i = format.per_channel ? token : channel % format.group;
  const bool last = format.eleven && i + 1 == format.group;
  const auto* words =
      reinterpret_cast<const uint32_t*>(block) + group * format.words;
  const int word = i * format.bits / 32, bit = i * format.bits % 32;
  uint64_t window = words[word];
  if (word + 1 < format.words)
    window |= static_cast<uint64_t>(words[word + 1]) << 32;
  const uint32_t mask = (1u << (last ? 2 : format.bits)) - 1;
  return {static_cast<uint32_t>(window >> bit) & mask, group, last};
}

// kFragment
KVMIX_HD CudaCode FragmentCode(const CudaFormat& format, bool keys,
                               const uint8_t* block, int head_dim, int token,
                               int channel) {
  using namespace cuda_layout;  // NOLINT
  const int units = head_dim / kUnit, in_unit = channel % kUnit;
  const int row = token % kUnit;
  const auto* words = reinterpret_cast<const uint32_t*>(block) +
                      token / kUnit * CodeWords(format.bits, units);
  const auto place =
      keys ? PlaceOf(row, KeyK(in_unit)) : PlaceOf(ValueM(in_unit), row);
  return {ReadCode(words, format.bits, units, channel / kUnit, place),
          keys ? channel : channel / format.group * kUnit + ScaleSlot(token),
          false};
}

KVMIX_HD CudaCode CodeAt(const CudaFormat& format, bool keys,
                         const uint8_t* block, int head_dim, int token,
                         int channel) {
  return format.layout == CudaLayout::kFragment
             ? FragmentCode(format, keys, block, head_dim, token, channel)
             : StringCode(format, block, head_dim, token, channel);
}

}  // namespace kvmix
