#include "kvmix/allocation/gaussian_distortion.h"

#include <cstdint>
#include <memory>
#include <vector>

#include "kvmix/base/random.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {

absl::StatusOr<double> GaussianDistortion(const QuantFormat& format, Side side,
                                          int head_dim) {
  if (format.bits() == 16) return 0;
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<BlockCodec> codec,
                         MakeBlockCodec(format, side, head_dim));
  constexpr int kBlocks = 16;
  const int tokens = codec->block_tokens();
  const size_t size = static_cast<size_t>(tokens) * head_dim;
  const int64_t stride = side == Side::kKey ? tokens : head_dim;
  std::vector<float> x(size), read(size);
  CounterRandom random(/*seed=*/1, /*stream=*/0);
  double squares = 0;
  for (int b = 0; b < kBlocks; ++b) {
    for (float& v : x) v = static_cast<float>(random.Normal());
    std::vector<uint32_t> block(codec->bytes().total() / 4 + 1);
    auto* bytes = reinterpret_cast<uint8_t*>(block.data());
    codec->Encode(x.data(), stride, 0, tokens, bytes);
    codec->Decode(bytes, 0, tokens, read.data(), stride);
    for (size_t i = 0; i < size; ++i) {
      const double error = static_cast<double>(read[i]) - x[i];
      squares += error * error;
    }
  }
  return squares / (kBlocks * static_cast<double>(size));
}

}  // namespace kvmix
