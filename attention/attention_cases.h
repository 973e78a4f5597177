// The cases that all variants of attention are tested with.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "attention/test_policies.h"
#include "kvmix/base/random.h"
#include "kvmix/cache_plan.pb.h"
#include "quant/quant_format.pb.h"

namespace kvmix::testing {

inline QuantFormat PerChannel(int bits, int group_size) {
  QuantFormat format;
  format.set_quantizer("group_affine");
  format.set_bits(bits);
  format.set_group_size(group_size);
  format.set_axis(QuantFormat::PER_CHANNEL);
  return format;
}
inline QuantFormat PerToken(int bits, int group_size) {
  QuantFormat format = PerChannel(bits, group_size);
  format.set_axis(QuantFormat::PER_TOKEN);
  return format;
}
inline QuantFormat ThreeBitWords() {
  QuantFormat format = PerChannel(3, 11);
  format.set_packing(QuantFormat::KVMIX_3BIT_11);
  return format;
}
inline QuantFormat Unquantized() {
  QuantFormat format;
  format.set_bits(16);
  return format;
}

struct Case {
  std::string name;
  int kv_heads = 1, group = 1, head_dim = 64;  // G, H / G, D
  int64_t cached = 0;                          // tokens before the chunk
  int64_t chunk = 1;                           // T
  QuantFormat key = Unquantized(), value = Unquantized();
  KeepRecentOptions recency = {};
  int64_t sliding_window = 0;
  CachePlan::FullPrecision full_precision = CachePlan::HALF;
};

// The one list that tests and benchmarks of attention may draw from.
inline std::vector<Case> Cases() {
  return {
      {.name = "first_token"},
      {.name = "half_decode", .kv_heads = 3, .group = 3, .cached = 100},
      {.name = "half_prefill", .kv_heads = 3, .group = 3, .chunk = 130},
      {.name = "half_chunk_after_cache",
       .kv_heads = 2,
       .group = 4,
       .cached = 77,
       .chunk = 40},
      {.name = "decode_k3v2_split_ranges",
       .kv_heads = 2,
       .group = 8,
       .cached = 1800,
       .key = PerChannel(3, 32),
       .value = PerToken(2, 32)},
      {.name = "decode_k2v4_everything_packed",
       .kv_heads = 1,
       .group = 4,
       .head_dim = 128,
       .cached = 255,
       .key = PerChannel(2, 32),
       .value = PerToken(4, 32)},
      {.name = "decode_eleven_token_words",
       .kv_heads = 2,
       .group = 3,
       .cached = 1100,
       .key = ThreeBitWords(),
       .value = PerToken(4, 16),
       .recency = {.ratio = 0.2, .sinks = 4}},
      {.name = "prefill_over_packed",
       .kv_heads = 2,
       .group = 3,
       .head_dim = 32,
       .cached = 300,
       .chunk = 70,
       .key = PerChannel(4, 32),
       .value = PerToken(4, 32),
       .recency = {.keep = 20, .sinks = 4}},
      {.name = "axes_swapped",
       .kv_heads = 1,
       .group = 2,
       .head_dim = 48,
       .cached = 200,
       .chunk = 3,
       .key = PerToken(5, 24),
       .value = PerChannel(7, 40)},
      {.name = "group_longer_than_a_tile",
       .kv_heads = 1,
       .group = 1,
       .head_dim = 40,
       .cached = 700,
       .chunk = 18,
       .key = PerChannel(8, 150),
       .value = PerChannel(6, 100)},
      {.name = "keys_half_values_packed",
       .kv_heads = 2,
       .group = 1,
       .head_dim = 256,
       .cached = 90,
       .chunk = 2,
       .value = PerToken(1, 64)},
      {.name = "sinks_only",
       .kv_heads = 1,
       .group = 3,
       .cached = 40,
       .key = PerChannel(2, 32),
       .value = PerToken(2, 32),
       .recency = {.sinks = 64}},
      {.name = "sliding_window_decode",
       .kv_heads = 2,
       .group = 2,
       .cached = 1500,
       .key = PerChannel(2, 32),
       .value = PerToken(2, 32),
       .sliding_window = 700},
      {.name = "sliding_window_prefill",
       .kv_heads = 1,
       .group = 4,
       .head_dim = 80,
       .cached = 60,
       .chunk = 150,
       .recency = {},
       .sliding_window = 33},
      {.name = "sliding_window_of_one",
       .cached = 130,
       .chunk = 30,
       .sliding_window = 1},
      {.name = "decode_uniform_two_bits_per_token",
       .kv_heads = 3,
       .group = 3,
       .cached = 1300,
       .key = PerToken(2, 32),
       .value = PerToken(2, 32),
       .recency = {.keep = 37}},
      {.name = "decode_long_groups",
       .kv_heads = 1,
       .group = 2,
       .head_dim = 128,
       .cached = 700,
       .key = PerChannel(4, 128),
       .value = PerToken(3, 128)},
      {.name = "decode_values_per_channel",
       .kv_heads = 1,
       .group = 1,
       .head_dim = 96,
       .cached = 300,
       .key = PerToken(3, 96),
       .value = PerChannel(4, 64),
       .recency = {.sinks = 5}},
      {.name = "decode_eight_bits_wide_head",
       .kv_heads = 1,
       .group = 5,
       .head_dim = 256,
       .cached = 260,
       .key = PerChannel(8, 32),
       .value = PerToken(8, 64)},
      {.name = "decode_six_rows_in_a_chunk",
       .kv_heads = 1,
       .group = 3,
       .cached = 170,
       .chunk = 2,
       .key = PerChannel(2, 64),
       .value = PerChannel(2, 32)},
      {.name = "decode_seven_rows_without_kernels",
       .kv_heads = 1,
       .group = 7,
       .cached = 170,
       .key = PerChannel(5, 32),
       .value = PerToken(6, 32)},
      {.name = "split_chunk_of_many_rows",
       .kv_heads = 1,
       .group = 8,
       .head_dim = 32,
       .cached = 1030,
       .chunk = 12,
       .key = PerChannel(2, 64),
       .value = PerToken(2, 32)},
  };
}

// The same, of the CPU alone: full precision that is not half.
inline std::vector<Case> FullPrecisionCases() {
  std::vector<Case> cases;
  for (const auto& [name, type] :
       {std::pair<std::string, CachePlan::FullPrecision>{"bfloat16",
                                                         CachePlan::BFLOAT16},
        {"float", CachePlan::FLOAT}}) {
    for (Case c : std::vector<Case>{
             {.name = "_decode", .kv_heads = 3, .group = 3, .cached = 1100},
             {.name = "_decode_of_any_width",
             .kv_heads = 1,
             .group = 5,
             .head_dim = 40,
             .cached = 77,
             .chunk = 3},
             {.name = "_prefill",
             .kv_heads = 2,
             .group = 4,
             .head_dim = 128,
             .cached = 70,
             .chunk = 90},
             {.name = "_around_packed",
             .kv_heads = 2,
             .group = 2,
             .cached = 300,
             .key = PerChannel(2, 32),
             .value = PerToken(3, 32),
             .recency = {.keep = 45, .sinks = 37}}}) {
      c.name = name + c.name;
      c.full_precision = type;
      cases.push_back(c);
    }
  }
  return cases;
}

inline std::vector<float> Normals(int64_t n, uint64_t stream) {
  CounterRandom random(7, stream);
  std::vector<float> x(n);
  for (float& v : x) v = static_cast<float>(random.Normal());
  return x;
}

}  // namespace kvmix::testing
