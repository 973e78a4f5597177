// 16-bit floats as they lie in files and caches: IEEE half ("fp16") and
// bfloat16. Conversion to 16 bits rounds to nearest, ties to even.
#pragma once

#include <bit>
#include <cstdint>

namespace kvmix {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float ToFloat(Half h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000) << 16;
  const uint32_t rest = h.bits & 0x7fff;
  if (rest >= 0x7c00)
    return std::bit_cast<float>(sign | 0x7f800000 |
                                (rest & 0x3ff) << 13);  // inf, NaN
  // Shift the exponent by arithmetic, so that subnormal halves come out right.
  const float magnitude = std::bit_cast<float>(rest << 13) *
                          std::bit_cast<float>((254u - 15u) << 23);
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

inline Half ToHalf(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000)
    return {static_cast<uint16_t>(sign | 0x7e00)};  // NaN
  if (magnitude >= 0x477ff000)
    return {static_cast<uint16_t>(sign | 0x7c00)};  // rounds to 65536 or more
  if (magnitude < 0x38800000) {  // below 2^-14: adding 0.5 puts the half's last
                                 // bit at the float's last bit
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(
        sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000))};
  }
  const uint32_t odd = magnitude >> 13 & 1;
  return {static_cast<uint16_t>(
      sign | ((magnitude - 0x38000000 + 0xfff + odd) >> 13))};
}

inline float ToFloat(BFloat16 b) {
  return std::bit_cast<float>(static_cast<uint32_t>(b.bits) << 16);
}

inline BFloat16 ToBFloat16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000)
    return {static_cast<uint16_t>(bits >> 16 | 0x40)};  // NaN
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

}  // namespace kvmix
