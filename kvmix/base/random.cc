#include "kvmix/base/random.h"

#include <cmath>
#include <numbers>

#include "Random123/philox.h"

namespace kvmix {

uint32_t CounterRandom::Next32() {
  if (used_ == 4) {
    using Philox = r123::Philox4x32_R<10>;
    const Philox::ctr_type counter = {
        {static_cast<uint32_t>(block_), static_cast<uint32_t>(block_ >> 32),
         static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)}};
    const Philox::key_type key = {
        {static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)}};
    const Philox::ctr_type bits = Philox()(counter, key);
    buffer_ = {bits[0], bits[1], bits[2], bits[3]};
    ++block_;
    used_ = 0;
  }
  return buffer_[used_++];
}

uint64_t CounterRandom::Next64() {
  const uint64_t low = Next32();
  return low | static_cast<uint64_t>(Next32()) << 32;
}

uint64_t CounterRandom::Below(uint64_t n) {
  // Lemire's method: the high half of bits * n is uniform once the few low
  // halves below 2^64 mod n are rejected.
  using Wide = unsigned __int128;
  Wide product = static_cast<Wide>(Next64()) * n;
  if (static_cast<uint64_t>(product) < n) {
    const uint64_t threshold = -n % n;
    while (static_cast<uint64_t>(product) < threshold)
      product = static_cast<Wide>(Next64()) * n;
  }
  return static_cast<uint64_t>(product >> 64);
}

double CounterRandom::Uniform() {
  return static_cast<double>(Next64() >> 11) * 0x1p-53;
}

double CounterRandom::Normal() {
  const double radius =
      std::sqrt(-2.0 * std::log(1.0 - Uniform()));  // 1 - u is in (0, 1]
  return radius * std::cos(2.0 * std::numbers::pi * Uniform());
}

}  // namespace kvmix
