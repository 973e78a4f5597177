// Rows of tokens through a codec, for tests. testonly.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kvmix/base/random.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "quant/quantizer.h"

namespace kvmix::testing {

// n normal numbers.
inline std::vector<float> NormalNumbers(int64_t n, uint64_t seed = 5) {
  CounterRandom random(seed, 0);
  std::vector<float> x(n);
  for (float& v : x) v = static_cast<float>(random.Normal());
  return x;
}

template <typename Options>
std::unique_ptr<Quantizer> MakeQuantizer(const std::string& name,
                                         const Options& options) {
  Component component;
  component.set_name(name);
  component.mutable_options()->PackFrom(options);
  auto made = Registry<Quantizer>::Get().Make(component, "quantizer");
  EXPECT_OK(made);
  return *std::move(made);
}

inline std::unique_ptr<Quantizer> MakeQuantizer(const std::string& name) {
  Component component;
  component.set_name(name);
  auto made = Registry<Quantizer>::Get().Make(component, "quantizer");
  EXPECT_OK(made);
  return *std::move(made);
}

// The codec of what `quantizer` offers, read as a plan is.
inline std::unique_ptr<BlockCodec> MakeCodec(const Quantizer& quantizer,
                                             Side side, int bits,
                                             int head_dim) {
  auto format = quantizer.FormatFor(side, bits, head_dim);
  EXPECT_OK(format);
  auto codec = MakeBlockCodec(*format, side, head_dim);
  EXPECT_OK(codec);
  return *std::move(codec);
}

// x [T, D], T = codec.block_tokens(), as a whole block.
inline std::vector<uint8_t> EncodeRows(const BlockCodec& codec, Side side,
                                       const std::vector<float>& x) {
  const int tokens = codec.block_tokens();
  const int dim = static_cast<int>(x.size()) / tokens;
  std::vector<uint8_t> block(codec.bytes().total() + 8);
  if (side == Side::kValue) {
    codec.Encode(x.data(), dim, 0, tokens, block.data());
    return block;
  }
  std::vector<float> columns(x.size());
  for (int t = 0; t < tokens; ++t)
    for (int d = 0; d < dim; ++d) columns[d * tokens + t] = x[t * dim + d];
  codec.Encode(columns.data(), tokens, 0, tokens, block.data());
  return block;
}

// [T, D]
inline std::vector<float> DecodeRows(const BlockCodec& codec, Side side,
                                     int dim,
                                     const std::vector<uint8_t>& block) {
  const int tokens = codec.block_tokens();
  std::vector<float> x(int64_t{tokens} * dim), rows(x.size());
  const bool keys = side == Side::kKey;
  codec.Decode(block.data(), 0, tokens, x.data(), keys ? tokens : dim);
  if (!keys) return x;
  for (int t = 0; t < tokens; ++t)
    for (int d = 0; d < dim; ++d) rows[t * dim + d] = x[d * tokens + t];
  return rows;
}

inline std::vector<float> RoundTrip(const BlockCodec& codec, Side side,
                                    const std::vector<float>& x) {
  return DecodeRows(codec, side,
                    static_cast<int>(x.size()) / codec.block_tokens(),
                    EncodeRows(codec, side, x));
}

inline double MeanSquaredError(const std::vector<float>& a,
                               const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double e = static_cast<double>(a[i]) - b[i];
    sum += e * e;
  }
  return sum / static_cast<double>(a.size());
}

}  // namespace kvmix::testing
