// Numbers of a stream one by one, as the CPU's cache decodes them. Device code
// alone; included by .cu files.
#pragma once

#include "attention/cuda_block.h"
#include "attention/cuda_stream.h"

namespace kvmix {
namespace cuda_stream {

// As BlockCodec::Decode computes it.
__device__ inline float PackedNumber(const Stream& s, int position,
                                     int channel) {
  const CudaFormat& format = s.side->format;
  const uint8_t* const block =
      s.blocks +
      static_cast<int64_t>(position / format.block_tokens) * format.block_bytes;
  const CudaCode at = CodeAt(format, s.side->keys, block, s.head_dim,
                             position % format.block_tokens, channel);
  float scale = __half2float(
      reinterpret_cast<const __half*>(block + format.scales_offset)[at.group]);
  const float zero = __half2float(
      reinterpret_cast<const __half*>(block + format.zeros_offset)[at.group]);
  if (at.last && format.last_scale != 1.0f)
    scale = __fdiv_rn(__fmul_rn(scale, 7.0f), 3.0f);
  return __fadd_rn(__fmul_rn(static_cast<float>(at.code), scale), zero);
}

__device__ __forceinline__ float StoredNumber(const Stream& s, int token,
                                              int channel) {
  const int position = token - s.max_sinks;
  return position >= 0 && position < s.packed
             ? PackedNumber(s, position, channel)
             : __half2float(HalfRow(s, token)[channel]);
}

}  // namespace cuda_stream
}  // namespace kvmix
