// Counter-based random numbers: every draw is a pure function of (seed, stream,
// position).
//
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011) maps a 128-bit counter and a 64-bit key to 128 random bits. Here the
// key is the seed and the counter is (block, stream), each 64 bits:
//   key     = { seed_lo, seed_hi }
//   counter = { block_lo, block_hi, stream_lo, stream_hi }
// so that streams never overlap, need no warm-up and do not depend on the order
// in which threads use them. Give every independent thing (a document, a layer,
// a head) its own stream.
//
// Next32, Next64, Below and Uniform give the same numbers on every platform;
// Normal goes through the C library's log and cos and may differ in the last
// bit between C libraries.
#pragma once

#include <array>
#include <cstdint>

namespace kvmix {

// Not thread-safe: use one object, with its own stream, per thread.
class CounterRandom {
 public:
  // Starts at the first draw of block `block` (four 32-bit draws per block) of
  // the stream.
  CounterRandom(uint64_t seed, uint64_t stream, uint64_t block = 0)
      : seed_(seed), stream_(stream), block_(block) {}

  uint32_t Next32();

  // The first 32-bit draw is the low half.
  uint64_t Next64();

  // Uniform in [0, n), without bias. Precondition: n > 0.
  uint64_t Below(uint64_t n);

  // Uniform in [0, 1), a multiple of 2^-53.
  double Uniform();

  // Standard normal (Box-Muller; two uniforms per draw, nothing cached).
  double Normal();

 private:
  uint64_t seed_;
  uint64_t stream_;
  uint64_t block_;                       // the next block to compute
  std::array<uint32_t, 4> buffer_ = {};  // the current block
  int used_ = 4;                         // draws taken from buffer_
};

}  // namespace kvmix
