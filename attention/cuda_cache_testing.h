// What tests of the device KV cache share: what the CPU's cache stores, bit for
// bit, both caches fed alike, and attention's reference.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "attention/attention_cases.h"
#include "attention/attention_reference.h"
#include "attention/cuda_kv_cache.h"
#include "attention/kv_cache_layer.h"
#include "attention/test_policies.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvmix/base/cuda_graph.h"
#include "kvmix/base/device_vector.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix::testing {

inline CachePlan PlanOf(const QuantFormat& key, const QuantFormat& value) {
  CachePlan plan;
  *plan.add_layer()->mutable_key() = key;
  *plan.mutable_layer(0)->mutable_value() = value;
  return plan;
}

inline CacheShape ShapeOf(const Case& c) {
  return {.num_layers = 1, .num_kv_heads = c.kv_heads, .head_dim = c.head_dim};
}

inline std::unique_ptr<KvCache> CpuCache(const Case& c) {
  auto cache = KvCache::Create(ShapeOf(c), PlanOf(c.key, c.value),
                               std::make_shared<KeepRecent>(c.recency),
                               std::make_shared<KeepAll>());
  EXPECT_OK(cache);
  return *std::move(cache);
}

inline std::unique_ptr<CudaKvCache> CudaCache(const Case& c, int sequences,
                                              int64_t max_tokens,
                                              int64_t max_chunk) {
  auto cache = CudaKvCache::Create(
      ShapeOf(c), PlanOf(c.key, c.value),
      std::make_shared<KeepRecent>(c.recency),
      {.num_sequences = sequences,
       .max_tokens = max_tokens,
       .max_chunk_tokens = std::max<int64_t>(max_chunk, sequences),
       .num_heads = c.kv_heads * c.group});
  EXPECT_OK(cache);
  return *std::move(cache);
}

// Replays a step of the cache, captured first unless the graph has it: whether
// it was captured.
template <typename Step>  // step(CudaKvCache&)
bool CaptureOrReplay(CudaGraph& graph, CudaKvCache& cache, cudaStream_t stream,
                     const Step& step) {
  const std::vector<uint64_t> key = {cache.launch_key()};
  const bool captures = !graph.Serves(key);
  if (captures) {
    EXPECT_OK(graph.Capture(key, stream, [&] {
      step(cache);
      return absl::OkStatus();
    }));
  }
  EXPECT_OK(graph.Launch(stream));
  return captures;
}

// ---- What the CPU's cache stores ----

// Code, scale and zero point of a packed number, by the descriptions in
// lane_block.h and group_affine.cc.
struct Packed {
  uint8_t code;
  uint16_t scale, zero;
};

inline uint16_t HalfAt(const uint8_t* bytes, int64_t index) {
  uint16_t half;
  std::memcpy(&half, bytes + 2 * index, 2);
  return half;
}

inline Packed InLanes(const LaneBlock& b, const uint8_t* block, int lane,
                      int inner) {
  const uint32_t* words =
      b.slice(block, lane / 32) + inner / 32 * b.unit_words() + lane % 32;
  const int i = inner % 32;
  uint32_t code = 0;
  int start = 0;
  for (int width : {8, 4, 2, 1}) {
    if ((b.bits & width) == 0) continue;
    const uint32_t word = words[(start + i / (32 / width)) * 32];
    const int bit = 8 * (i % 4) + width * (i / 4 % (8 / width));
    code |= (word >> bit & ((1u << width) - 1)) << start;
    start += width;
  }
  const int64_t group = b.groups_along_lanes
                            ? int64_t{lane} / b.group * b.inner + inner
                            : int64_t{inner} / b.group * b.lanes + lane;
  return {static_cast<uint8_t>(code), HalfAt(block + b.code_bytes(), group),
          HalfAt(block + b.code_bytes() + b.scale_bytes(), group)};
}

inline Packed InStrings(const QuantFormat& format, const BlockCodec& codec,
                        const uint8_t* block, int head_dim, int token,
                        int channel) {
  const int size = format.group_size();
  const bool per_channel = format.axis() == QuantFormat::PER_CHANNEL;
  const int64_t group =
      per_channel ? channel : token * (head_dim / size) + channel / size;
  const int i = per_channel ? token : channel % size;
  const int bits = format.bits();
  const int words =
      format.packing() == QuantFormat::DENSE ? (size * bits + 31) / 32 : 1;
  uint32_t code = 0;
  for (int bit = 0; bit < bits; ++bit) {
    const int at = i * bits + bit;
    if (at >= 32 * words) break;
    uint32_t word;
    std::memcpy(&word, block + 4 * (group * words + at / 32), 4);
    code |= (word >> (at % 32) & 1) << bit;
  }
  const int64_t codes = codec.bytes().codes;
  return {static_cast<uint8_t>(code), HalfAt(block + codes, group),
          HalfAt(block + codes + codec.bytes().scales, group)};
}

inline CudaKvCache::Stored StoredOnCpu(const KvStream& stream,
                                       const QuantFormat& format,
                                       int head_dim) {
  CudaKvCache::Stored out;
  const int64_t N = stream.num_tokens();
  const bool keys = stream.side() == Side::kKey;
  std::vector<float> x(N * head_dim);
  stream.Read(0, N, x.data(), keys ? N : head_dim);
  for (int64_t n = 0; n < N; ++n) {
    for (int d = 0; d < head_dim; ++d)
      out.x.push_back(keys ? x[d * N + n] : x[n * head_dim + d]);
    const KvStream::Piece piece = stream.PieceAt(n);
    if (piece.block == nullptr) {
      ++(out.packed == 0 && n < N - stream.window_tokens() ? out.sinks
                                                           : out.window);
      continue;
    }
    ++out.packed;
    const BlockCodec& codec = *stream.codec();
    for (int d = 0; d < head_dim; ++d) {
      const LaneBlock* lanes = codec.lane_block();
      const Packed p = lanes == nullptr ? InStrings(format, codec, piece.block,
                                                    head_dim, piece.first, d)
                       : keys ? InLanes(*lanes, piece.block, piece.first, d)
                              : InLanes(*lanes, piece.block, d, piece.first);
      out.codes.push_back(p.code);
      out.scales.push_back(p.scale);
      out.zeros.push_back(p.zero);
    }
  }
  return out;
}

inline void ExpectSameStored(const Case& c, const KvCache& cpu,
                             const CudaKvCache& cuda, int sequence) {
  for (int head = 0; head < c.kv_heads; ++head) {
    for (Side side : {Side::kKey, Side::kValue}) {
      const bool keys = side == Side::kKey;
      const KvCache::Layer& layer = cpu.layer(0);
      const auto want = StoredOnCpu((keys ? layer.keys : layer.values)[head],
                                    keys ? c.key : c.value, c.head_dim);
      const auto got = cuda.Read(0, sequence, head, side);
      ASSERT_OK(got);
      SCOPED_TRACE(std::string(SideName(side)) + " of KV head " +
                   std::to_string(head));
      EXPECT_EQ(got->sinks, want.sinks);
      EXPECT_EQ(got->packed, want.packed);
      EXPECT_EQ(got->window, want.window);
      // Compared whole: a list of differences would not be read.
      EXPECT_TRUE(got->codes == want.codes);
      EXPECT_TRUE(got->scales == want.scales);
      EXPECT_TRUE(got->zeros == want.zeros);
      EXPECT_TRUE(got->x == want.x);
    }
  }
}

// ---- Both caches, fed alike ----

template <typename T>
struct Number;
template <>
struct Number<float> {
  static constexpr CudaNumber kType = CudaNumber::kFloat;
  static float From(float x) { return x; }
};
template <>
struct Number<__half> {
  static constexpr CudaNumber kType = CudaNumber::kHalf;
  static __half From(float x) { return __float2half(x); }
};
template <>
struct Number<__nv_bfloat16> {
  static constexpr CudaNumber kType = CudaNumber::kBFloat16;
  static __nv_bfloat16 From(float x) { return __float2bfloat16(x); }
};

// Rows on the device, with a gap between them that nobody may touch.
template <typename T>
class DeviceRows {
 public:
  DeviceRows(const std::vector<float>& x, int64_t width)
      : width_(width), x_(Spread(x, width)) {}
  CudaRows rows() { return {x_.data(), Number<T>::kType, width_ + kGap}; }
  CudaMutableRows mutable_rows() {
    return {x_.data(), Number<T>::kType, width_ + kGap};
  }
  std::vector<float> ToHost() {
    std::vector<float> out;
    const std::vector<T> x = x_.ToHost();
    for (size_t i = 0; i < x.size(); ++i) {
      const float v = static_cast<float>(x[i]);
      if (static_cast<int64_t>(i % (width_ + kGap)) < width_) {
        out.push_back(v);
      } else {
        EXPECT_EQ(v, kUntouched);
      }
    }
    return out;
  }

 private:
  static constexpr int64_t kGap = 8;
  static constexpr float kUntouched = -77;
  static std::vector<T> Spread(const std::vector<float>& x, int64_t width) {
    std::vector<T> out;
    for (size_t i = 0; i < x.size(); i += width) {
      for (int64_t d = 0; d < width; ++d)
        out.push_back(Number<T>::From(x[i + d]));
      for (int64_t d = 0; d < kGap; ++d)
        out.push_back(Number<T>::From(kUntouched));
    }
    return out;
  }
  const int64_t width_;
  DeviceVector<T> x_;
};

// Appends keys and values to the device cache, for all items of a chunk.
inline void AppendCuda(CudaKvCache& cuda,
                       const std::vector<SequenceChunk>& chunk,
                       const std::vector<float>& keys,
                       const std::vector<float>& values) {
  const int64_t width =
      int64_t{cuda.shape().num_kv_heads} * cuda.shape().head_dim;
  ASSERT_OK(cuda.BeginChunk(chunk, nullptr));
  DeviceRows<float> k(keys, width), v(values, width);
  ASSERT_OK(cuda.Append(0, k.rows(), v.rows(), nullptr));
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

inline std::vector<float> AttendCuda(CudaKvCache& cuda, const Case& c,
                                     const std::vector<float>& queries) {
  const int64_t width = int64_t{c.kv_heads} * c.group * c.head_dim;
  DeviceRows<float> q(queries, width),
      out(std::vector<float>(queries.size(), -1.0f), width);
  EXPECT_OK(
      cuda.Attention(0, q.rows(), out.mutable_rows(),
                     {.scale = 1 / std::sqrt(static_cast<float>(c.head_dim)),
                      .sliding_window = c.sliding_window},
                     nullptr));
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  return out.ToHost();
}

// Half keys and values, queries rounded to half, sums in float. A score's
// rounding error e makes a relative error e in a weight: queries, their
// products with scales, and numbers decoded to half are rounded once each, so e
// is below three half epsilons (2^-11) of the score's condition, in base 2.
// Weights and their products with scales are rounded once each, as are zero
// points' products: four more, of the largest value. Errors of either sign
// cancel in part: a tenth of that bound is asked for; the emulator stays below
// a fiftieth.
inline void ExpectNearReference(const Case& c, const KvCache& cpu,
                                const std::vector<float>& queries,
                                const std::vector<float>& out) {
  const int64_t D = c.head_dim, own = c.group * D, row = c.kv_heads * own;
  const auto tokens = static_cast<int64_t>(queries.size()) / row;
  const ReferenceAttention reference{
      .num_heads = c.group,
      .num_kv_heads = 1,
      .head_dim = c.head_dim,
      .scale = 1 / std::sqrt(static_cast<double>(c.head_dim)),
      .sliding_window = c.sliding_window};
  ASSERT_EQ(out.size(), queries.size());
  double worst = 0;
  for (int g = 0; g < c.kv_heads; ++g) {  // which may hold different tokens
    const auto keys = StoredOnCpu(cpu.layer(0).keys[g], c.key, c.head_dim).x;
    const auto values =
        StoredOnCpu(cpu.layer(0).values[g], c.value, c.head_dim).x;
    std::vector<float> own_queries;
    for (int64_t t = 0; t < tokens; ++t)
      own_queries.insert(own_queries.end(), queries.begin() + t * row + g * own,
                         queries.begin() + t * row + (g + 1) * own);
    std::vector<double> condition;
    const std::vector<double> want =
        reference(own_queries, keys, values, &condition);
    float largest = 0;
    for (float v : values) largest = std::max(largest, std::fabs(v));
    for (int64_t i = 0; i < tokens * own; ++i) {
      const double unit =
          std::ldexp(1.0, -11) * largest * (4 + 3 * condition[i / D]);
      const double error =
          std::fabs(out[i / own * row + g * own + i % own] - want[i]) / unit;
      worst = error <= worst ? worst : error;  // NaN is the worst
    }
  }
  EXPECT_LT(worst, 0.1);
  ::testing::Test::RecordProperty("worst", std::to_string(worst));
}

}  // namespace kvmix::testing
