// The emulator's own versions of functions that NVIDIA's headers have for hosts
// too: to the bit. NVIDIA's are called by operators here, for the names are
// ours.
#include "tools/cuda_emulator/device_functions.h"

#include <cmath>
#include <cstdint>

#include "gtest/gtest.h"

namespace {

template <typename T>
uint64_t BitsOf(const T& x) {
  uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof x);
  return bits;
}
__half HalfOf(uint32_t bits) {
  return emu::Bits<__half>(static_cast<uint16_t>(bits));
}

TEST(DeviceFunctionsTest, EveryHalfBecomesNvidiasFloat) {
  for (uint32_t i = 0; i < 65536; ++i) {
    const __half h = HalfOf(i);
    ASSERT_EQ(BitsOf(__half2float(h)), BitsOf(static_cast<float>(h))) << i;
  }
}

// Every exponent and sign, mantissas around every place where rounding turns.
TEST(DeviceFunctionsTest, FloatsBecomeNvidiasHalves) {
  for (uint32_t top = 0; top < 0x10000; ++top)
    for (uint32_t low :
         {0x0u, 0x1u, 0xfffu, 0x1000u, 0x1001u, 0x2000u, 0x7fffu, 0x8000u,
          0x8001u, 0xefffu, 0xf000u, 0xf001u, 0xffffu}) {
      const float x = emu::Bits<float>(top << 16 | low);
      ASSERT_EQ(BitsOf(__float2half_rn(x)), BitsOf(__half(x)))
          << std::hex << (top << 16 | low);
    }
}

TEST(DeviceFunctionsTest, PairsOfHalvesMultiplyAsNvidias) {
  uint32_t random = 1;
  for (int i = 0; i < 100000; ++i) {
    random = random * 1664525 + 1013904223;
    const __half2 a(HalfOf(random), HalfOf(random >> 16));
    random = random * 1664525 + 1013904223;
    const __half2 b(HalfOf(random), HalfOf(random >> 16));
    ASSERT_EQ(BitsOf(__hmul2(a, b)), BitsOf(a * b)) << i;
    const float2 floats = __half22float2(a);
    ASSERT_EQ(BitsOf(floats.x), BitsOf(static_cast<float>(a.x)));
    ASSERT_EQ(BitsOf(floats.y), BitsOf(static_cast<float>(a.y)));
    ASSERT_EQ(BitsOf(__floats2half2_rn(floats.x, floats.y)),
              BitsOf(__half2(__half(floats.x), __half(floats.y))));
  }
}

}  // namespace
