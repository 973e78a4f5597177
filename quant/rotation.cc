#include "quant/rotation.h"

#include <cmath>
#include <utility>

#include "kvmix/base/random.h"
#include "quant/wrapping_codec.h"

namespace kvmix {
namespace {

constexpr uint64_t kSignStream = 1;

class RotatedCodec final : public WrappingCodec {
 public:
  RotatedCodec(std::unique_ptr<BlockCodec> inner, Side side, int head_dim,
               uint64_t seed)
      : WrappingCodec(std::move(inner), side, head_dim),
        rotation_(head_dim, seed) {}

  void Encode(const float* x, int64_t stride, int first, int count,
              uint8_t* block) const override {
    TokenTile tile(side(), head_dim(), x, stride, count);
    rotation_.Forward(tile.x.data(), ChannelStep(tile.stride()),
                      TokenStep(tile.stride()), count);
    inner().Encode(tile.x.data(), tile.stride(), first, count, block);
  }
  void Decode(const uint8_t* block, int first, int count, float* x,
              int64_t stride) const override {
    inner().Decode(block, first, count, x, stride);
    rotation_.Inverse(x, ChannelStep(stride), TokenStep(stride), count);
  }

 private:
  int64_t ChannelStep(int64_t stride) const {
    return side() == Side::kKey ? stride : 1;
  }
  int64_t TokenStep(int64_t stride) const {
    return side() == Side::kKey ? 1 : stride;
  }

  const Rotation rotation_;
};

}  // namespace

Rotation::Rotation(int dim, uint64_t seed)
    : dim_(dim), block_(dim & -dim), signs_(dim) {
  CounterRandom random(seed, kSignStream);
  const float size = 1 / std::sqrt(static_cast<float>(block_));
  for (float& sign : signs_) sign = random.Below(2) == 0 ? size : -size;
}

void Rotation::Hadamard(float* x, int64_t step) const {
  for (int base = 0; base < dim_; base += block_) {
    for (int half = 1; half < block_; half *= 2) {
      for (int i = 0; i < block_; i += 2 * half) {
        for (int j = i; j < i + half; ++j) {
          float& a = x[(base + j) * step];
          float& b = x[(base + j + half) * step];
          const float sum = a + b, difference = a - b;
          a = sum;
          b = difference;
        }
      }
    }
  }
}

void Rotation::Forward(float* x, int64_t step, int64_t next,
                       int64_t count) const {
  for (int64_t i = 0; i < count; ++i, x += next) {
    for (int d = 0; d < dim_; ++d) x[d * step] *= signs_[d];
    Hadamard(x, step);
  }
}

void Rotation::Inverse(float* x, int64_t step, int64_t next,
                       int64_t count) const {
  for (int64_t i = 0; i < count; ++i, x += next) {
    Hadamard(x, step);
    for (int d = 0; d < dim_; ++d) x[d * step] *= signs_[d];
  }
}

std::unique_ptr<BlockCodec> MakeRotatedCodec(std::unique_ptr<BlockCodec> inner,
                                             Side side, int head_dim,
                                             uint64_t seed) {
  return std::make_unique<RotatedCodec>(std::move(inner), side, head_dim, seed);
}

}  // namespace kvmix
