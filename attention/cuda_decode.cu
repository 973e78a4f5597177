// Decode attention: one token a sequence, up to 8 query heads of a KV head at a
// time, over [sinks | packed blocks | window].
//
// A block of threads has a range of the cache, a warp every fourth tile of 32
// tokens of it. Sums run in the tensor cores, cached numbers as the operand
// with 16 rows, queries as the one with 8 columns (m16n8k16):
//   scores^T [tokens, queries]   = K [tokens, channels] Q^T
//   out^T    [channels, queries] = V^T [channels, tokens] P^T
// so that few queries waste nothing that matters: an operand register of two
// codes costs a mask, and its sixteenth of an instruction multiplies it with 8
// queries at once. That serves one query head as well as eight.
//
// Codes enter as they are (cuda_fragments.h). With x = code * scale + zero,
//   q . x = (q * scale) . code + q . zero
// keys' scales are folded into the queries, values' into the weights; zero
// points are a product of their own: of 16 equal rows for keys, of one row a
// unit of channels for values.
//
// Packed tiles travel by cp.async through a ring of shared memory, a warp's
// own; unquantized rows are read straight into operands, for
// quant/cuda_layout.h orders channels to that end.
#include "attention/cuda_attention.h"
#include "attention/cuda_fragments.h"
#include "attention/cuda_stream.h"
#include "kvmix/base/ptx.h"
#include "kvmix/base/warp.h"
#include "quant/cuda_layout.h"

namespace kvmix {
namespace {

using namespace cuda_fragments;  // NOLINT
using namespace cuda_layout;     // NOLINT
using namespace cuda_stream;     // NOLINT

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kStages = 3;   // of the ring
constexpr int kQueries = 8;  // columns of an operand

// What a packed side takes of a stage of the ring, in bytes: codes, scales and
// zero points.
struct PackedSide {
  int codes, scales;
};
KVMIX_HD PackedSide SizesOf(int bits, bool keys, int group, int head_dim) {
  if (bits == 16) return {0, 0};
  const int units = head_dim / kUnit;
  return {4 * CodeWords(bits, units),
          4 * kUnit * (keys ? units : head_dim / group)};
}

// The first row of a tile, unquantized: a ring has room for whole tiles.
__device__ __forceinline__ const __half* HalfTile(const Stream& s,
                                                  const Tile& tile) {
  return tile.position < 0
             ? s.sink_rows() + static_cast<int64_t>(tile.token) * s.head_dim
             : s.window() +
                   static_cast<int64_t>(tile.position % s.side->window_tokens) *
                       s.head_dim;
}

// ---- Packed tiles on their way ----

// At most kMost bytes: no loop is left.
template <int kMost>
__device__ __forceinline__ void CopyBytes(uint8_t* to, const uint8_t* from,
                                          int bytes) {
  const int own = threadIdx.x % 32 * 16;
#pragma unroll
  for (int at = 0; at < kMost; at += 32 * 16)
    if (at + own < bytes) ptx::CpAsync16(to + at + own, from + at + own);
}

struct BlockPart {
  int block, part;  // of 32 tokens each
};
// Rare, and a division.
__device__ __forceinline__ BlockPart PartOfLongBlock(int position,
                                                     int block_tokens) {
  return {position / block_tokens, position % block_tokens / kTile};
}

// 32 tokens at `position`. kBits: at most.
template <int kUnits, int kBits>
__device__ __forceinline__ void CopyPacked(const Stream& s, PackedSide sizes,
                                           int block_tokens, int position,
                                           uint8_t* to) {
  BlockPart at{position / kTile, 0};
  if (block_tokens != kTile) at = PartOfLongBlock(position, block_tokens);
  const CudaFormat& format = s.side->format;
  const uint8_t* from =
      s.blocks + static_cast<int64_t>(at.block) * format.block_bytes;
  CopyBytes<4 * CodeWords(kBits, kUnits)>(to, from + at.part * sizes.codes,
                                          sizes.codes);
  CopyBytes<4 * kUnit * kUnits>(to + sizes.codes, from + format.scales_offset,
                                sizes.scales);
}

// ---- Scores ----

struct Lane {
  int g, t;
};
__device__ __forceinline__ Lane MyLane() {
  const int lane = threadIdx.x % 32;
  return {lane / 4, lane % 4};
}

__device__ __forceinline__ uint32_t Times(uint32_t a, uint32_t b) {
  return AsBits(__hmul2(AsHalf2(a), AsHalf2(b)));
}
__device__ __forceinline__ void Load4(const __half* from, uint32_t (&x)[4]) {
  const uint4 v = *reinterpret_cast<const uint4*>(from);
  x[0] = v.x;
  x[1] = v.y;
  x[2] = v.z;
  x[3] = v.w;
}
__device__ __forceinline__ void Mma(float (&d)[4], uint32_t a0, uint32_t a1,
                                    uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1) {
  const unsigned a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
  ptx::MmaM16N8K16(d, a, b, d);
}

// Queries as an operand: [unit][c], of query g, channels 32 unit + 8t + 2c + e.
template <int kUnits>
struct Queries {
  uint32_t x[kUnits][kSets];
};

// Scores [j][query 2t or 2t + 1] of row 8j + g, before the queries' powers of
// two.
struct Scores {
  float x[kRows][2];
};

template <int kUnits, int kBits>
__device__ __forceinline__ Scores ScorePacked(const uint8_t* tile,
                                              const Queries<kUnits>& q) {
  constexpr int kV = UnitVector(kUnits);
  const auto* codes = reinterpret_cast<const uint32_t*>(tile);
  const auto* scales =
      reinterpret_cast<const __half*>(tile + 4 * CodeWords(kBits, kUnits));
  const __half* zeros = scales + kUnits * kUnit;
  const int t = MyLane().t;
  float sum[2][4] = {}, zero_sum[4] = {};
#pragma unroll
  for (int first = 0; first < kUnits; first += kV) {
    uint32_t words[kV][kBits];
    LoadWords<kBits, kUnits>(codes, first, words);
#pragma unroll
    for (int u = 0; u < kV; ++u) {
      uint32_t scale[kSets], zero[kSets];
      Load4(scales + (first + u) * kUnit + 8 * t, scale);
      Load4(zeros + (first + u) * kUnit + 8 * t, zero);
#pragma unroll
      for (int c = 0; c < kSets; c += 2) {
        const uint32_t q0 = q.x[first + u][c], q1 = q.x[first + u][c + 1];
        const uint32_t b0 = Times(q0, scale[c]), b1 = Times(q1, scale[c + 1]);
#pragma unroll
        for (int j = 0; j < kRows; j += 2)
          Mma(sum[j / 2], Pair<kBits>(words[u], c, j),
              Pair<kBits>(words[u], c, j + 1), Pair<kBits>(words[u], c + 1, j),
              Pair<kBits>(words[u], c + 1, j + 1), b0, b1);
        Mma(zero_sum, zero[c], zero[c], zero[c + 1], zero[c + 1], q0, q1);
      }
    }
  }
  Scores scores;
#pragma unroll
  for (int j = 0; j < kRows; ++j)
    for (int i = 0; i < 2; ++i)
      scores.x[j][i] =
          sum[j / 2][j % 2 * 2 + i] * CodeUnit(kBits, j) + zero_sum[i];
  return scores;
}

// Rows [first, last); others score 0.
template <int kUnits>
__device__ __forceinline__ Scores ScoreHalf(const __half* tile, int first,
                                            int last,
                                            const Queries<kUnits>& q) {
  const Lane lane = MyLane();
  float sum[2][4] = {};
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    uint32_t x[kRows][kSets];
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int row = 8 * j + lane.g;
#pragma unroll
      for (int c = 0; c < kSets; ++c) x[j][c] = 0;
      if (row >= first && row < last)
        Load4(tile + row * kUnits * kUnit + u * kUnit + 8 * lane.t, x[j]);
    }
#pragma unroll
    for (int c = 0; c < kSets; c += 2)
#pragma unroll
      for (int j = 0; j < kRows; j += 2)
        Mma(sum[j / 2], x[j][c], x[j + 1][c], x[j][c + 1], x[j + 1][c + 1],
            q.x[u][c], q.x[u][c + 1]);
  }
  Scores scores;
#pragma unroll
  for (int j = 0; j < kRows; ++j)
    for (int i = 0; i < 2; ++i) scores.x[j][i] = sum[j / 2][j % 2 * 2 + i];
  return scores;
}

// ---- Values ----

// Attention weights as an operand: [c], of query g, tokens 8c + 2t + e.
struct Weights {
  uint32_t x[kSets];
  // Those of tokens [first, last), others 0.
  __device__ __forceinline__ Weights Only(int first, int last) const {
    const int t = MyLane().t;
    Weights only;
#pragma unroll
    for (int c = 0; c < kSets; ++c) {
      const int k = 8 * c + 2 * t;
      only.x[c] = (k >= first && k < last ? x[c] & 0xffffu : 0u) |
                  (k + 1 >= first && k + 1 < last ? x[c] & 0xffff0000u : 0u);
    }
    return only;
  }
};

// Sums over tokens of weight * value, of channels 32 unit + 4g + j and queries
// 2t, 2t + 1: [unit][j / 2][j % 2 * 2 + i].
template <int kUnits>
struct Output {
  float x[kUnits][2][4];
  // Of weight * zero point, of unit g mod kUnits, [i] and the same again.
  float zero[4];
  // Whether x has to be multiplied with CodeUnit still.
  bool of_codes;

  __device__ __forceinline__ void Rescale(float f0, float f1) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u)
#pragma unroll
      for (int i = 0; i < 8; ++i) x[u][i / 4][i % 4] *= i % 2 == 0 ? f0 : f1;
#pragma unroll
    for (int i = 0; i < 4; ++i) zero[i] *= i % 2 == 0 ? f0 : f1;
  }
  __device__ __forceinline__ void Become(bool codes, int bits) {
    if (codes == of_codes) return;
    of_codes = codes;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const float unit = codes ? 1 / CodeUnit(bits, j) : CodeUnit(bits, j);
#pragma unroll
      for (int u = 0; u < kUnits; ++u)
        for (int i = 0; i < 2; ++i) x[u][j / 2][j % 2 * 2 + i] *= unit;
    }
  }
};

template <int kUnits, int kBits>
__device__ __forceinline__ void AddPacked(const uint8_t* tile, int group,
                                          const Weights& p,
                                          Output<kUnits>& out) {
  constexpr int kV = UnitVector(kUnits);
  const auto* codes = reinterpret_cast<const uint32_t*>(tile);
  const auto* scales =
      reinterpret_cast<const __half*>(tile + 4 * CodeWords(kBits, kUnits));
  const __half* zeros = scales + kUnits * kUnit / group * kUnit;
  const Lane lane = MyLane();
#pragma unroll
  for (int first = 0; first < kUnits; first += kV) {
    uint32_t words[kV][kBits];
    LoadWords<kBits, kUnits>(codes, first, words);
#pragma unroll
    for (int u = 0; u < kV; ++u) {
      uint32_t scale[kSets];
      Load4(scales + (first + u) * kUnit / group * kUnit + 8 * lane.t, scale);
#pragma unroll
      for (int c = 0; c < kSets; c += 2) {
        const uint32_t b0 = Times(p.x[c], scale[c]);
        const uint32_t b1 = Times(p.x[c + 1], scale[c + 1]);
#pragma unroll
        for (int j = 0; j < kRows; j += 2)
          Mma(out.x[first + u][j / 2], Pair<kBits>(words[u], c, j),
              Pair<kBits>(words[u], c, j + 1), Pair<kBits>(words[u], c + 1, j),
              Pair<kBits>(words[u], c + 1, j + 1), b0, b1);
      }
    }
  }
  uint32_t zero[kSets];
  Load4(zeros + lane.g % kUnits * kUnit / group * kUnit + 8 * lane.t, zero);
#pragma unroll
  for (int c = 0; c < kSets; c += 2)
    Mma(out.zero, zero[c], zero[c], zero[c + 1], zero[c + 1], p.x[c],
        p.x[c + 1]);
}

// Rows [first, last).
template <int kUnits>
__device__ __forceinline__ void AddHalf(const __half* tile, int first, int last,
                                        const Weights& p, Output<kUnits>& out) {
  const Lane lane = MyLane();
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    uint2 x[kSets][2];  // four channels of two tokens
#pragma unroll
    for (int c = 0; c < kSets; ++c)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = 8 * c + 2 * lane.t + e;
        x[c][e] =
            row >= first && row < last
                ? *reinterpret_cast<const uint2*>(tile + row * kUnits * kUnit +
                                                  u * kUnit + 4 * lane.g)
                : make_uint2(0, 0);
      }
    // Pairs of channels become pairs of tokens.
    uint32_t a[kSets][kRows];
#pragma unroll
    for (int c = 0; c < kSets; ++c) {
      a[c][0] = __byte_perm(x[c][0].x, x[c][1].x, 0x5410);
      a[c][1] = __byte_perm(x[c][0].x, x[c][1].x, 0x7632);
      a[c][2] = __byte_perm(x[c][0].y, x[c][1].y, 0x5410);
      a[c][3] = __byte_perm(x[c][0].y, x[c][1].y, 0x7632);
    }
#pragma unroll
    for (int c = 0; c < kSets; c += 2)
#pragma unroll
      for (int j = 0; j < kRows; j += 2)
        Mma(out.x[u][j / 2], a[c][j], a[c][j + 1], a[c + 1][j], a[c + 1][j + 1],
            p.x[c], p.x[c + 1]);
  }
}

// ---- Bits: known to the compiler, or (0) to the format alone ----

template <int kUnits, int kBits>
__device__ __forceinline__ Scores ScorePackedOf(int bits, const uint8_t* tile,
                                                const Queries<kUnits>& q) {
  if constexpr (kBits != 0) {
    return ScorePacked<kUnits, kBits>(tile, q);
  } else {
    return WithBits(
        bits, [&](auto b) { return ScorePacked<kUnits, b.value>(tile, q); });
  }
}

template <int kUnits, int kBits>
__device__ __forceinline__ void AddPackedOf(int bits, const uint8_t* tile,
                                            int group, const Weights& p,
                                            Output<kUnits>& out) {
  if constexpr (kBits != 0) {
    AddPacked<kUnits, kBits>(tile, group, p, out);
  } else {
    WithBits(bits,
             [&](auto b) { AddPacked<kUnits, b.value>(tile, group, p, out); });
  }
}

// ---- The kernel ----

// Queries times scale and log2(e), over a power of two (returned) that makes
// the largest of a query lie in [0.5, 1): products with scales stay in the
// range of half, whatever that of queries is.
template <int kUnits>
__device__ float ReadQueries(const CudaAttentionParams& params, int row,
                             int head, bool real, Queries<kUnits>& q) {
  const int t = MyLane().t;
  float x[kUnits][8], largest = 0;
  WithType(params.queries.data, params.queries.type, [&](auto* numbers) {
    numbers += row * params.queries.stride +
               static_cast<int64_t>(head) * kUnits * kUnit + 8 * t;
#pragma unroll
    for (int u = 0; u < kUnits; ++u)
#pragma unroll
      for (int i = 0; i < 8; ++i)
        x[u][i] =
            real ? ToFloat(numbers[u * kUnit + i]) * (params.scale * kLog2E)
                 : 0.0f;
  });
#pragma unroll
  for (int u = 0; u < kUnits; ++u)
#pragma unroll
    for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(x[u][i]));
  largest = WarpReduce<1, 2>(largest, MaxOf());
  const PowerOfTwo power = PowerAbove(largest);
#pragma unroll
  for (int u = 0; u < kUnits; ++u)
#pragma unroll
    for (int c = 0; c < kSets; ++c)
      q.x[u][c] = AsBits(__floats2half2_rn(x[u][2 * c] * power.inverse,
                                           x[u][2 * c + 1] * power.inverse));
  return power.value;
}

// What one warp, or one block of threads, found: for the combination.
struct Part {
  float* max;  // [queries]
  float* sum;  // [queries]
  float* out;  // [queries, D]
};

template <int kUnits>
__device__ Part PartOf(void* shared, int warp) {
  float* const base =
      static_cast<float*>(shared) + warp * kQueries * (kUnits * kUnit + 2);
  return {base + kQueries * kUnits * kUnit,
          base + kQueries * (kUnits * kUnit + 1), base};
}
template <int kUnits>
constexpr int PartBytes() {
  return kWarps * kQueries * (kUnits * kUnit + 2) * 4;
}

template <int kUnits>
__device__ void WritePart(const float (&max)[2], const float (&sum)[2],
                          Output<kUnits>& out, int value_bits, Part part) {
  const Lane lane = MyLane();
  out.Become(false, value_bits);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int query = 2 * lane.t + i;
    const float total = WarpReduce<4, 8, 16>(sum[i], SumOf());
    if (lane.g == 0) {
      part.max[query] = max[i];
      part.sum[query] = total;
    }
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const float zero = __shfl_sync(kAllLanes, out.zero[i], 4 * u + lane.t);
      float4 x;
      x.x = out.x[u][0][i] + zero;
      x.y = out.x[u][0][2 + i] + zero;
      x.z = out.x[u][1][i] + zero;
      x.w = out.x[u][1][2 + i] + zero;
      *reinterpret_cast<float4*>(part.out + query * kUnits * kUnit + u * kUnit +
                                 4 * lane.g) = x;
    }
  }
}

// The warps' parts as one.
template <int kUnits>
__device__ void CombineWarps(const CudaAttentionParams& params, void* shared,
                             int row, int first_head, int num_queries) {
  constexpr int kHeadDim = kUnits * kUnit;
  for (int i = threadIdx.x; i < num_queries * kHeadDim; i += kThreads) {
    const int query = i / kHeadDim, d = i % kHeadDim;
    float largest = -INFINITY, sum = 0, x = 0;
    for (int w = 0; w < kWarps; ++w)
      largest = fmaxf(largest, PartOf<kUnits>(shared, w).max[query]);
    for (int w = 0; w < kWarps; ++w) {
      const Part part = PartOf<kUnits>(shared, w);
      const float weight = PartWeight(part.max[query], largest);
      sum += part.sum[query] * weight;
      x += part.out[query * kHeadDim + d] * weight;
    }
    const int head = first_head + query;
    if (params.splits == 1) {
      StoreNumber(params.out.data, params.out.type,
                  static_cast<int64_t>(row) * params.out.stride +
                      static_cast<int64_t>(head) * kHeadDim + d,
                  x / sum);
      continue;
    }
    const int64_t at =
        (static_cast<int64_t>(row) * params.num_heads + head) * params.splits +
        blockIdx.x;
    params.partial_out[at * kHeadDim + d] = x;
    if (d == 0) {
      params.partial_max[at] = largest;
      params.partial_sum[at] = sum;
    }
  }
}

// Blocks of threads that a multiprocessor shall have room for.
constexpr int ResidentBlocks(int units, int key_bits) {
  return units == 2 ? 4 : key_bits != 0 ? 3 : 2;
}

// grid: splits, (KV head, 8 of its queries), items
template <int kUnits, int kKeyBits, int kValueBits>
__global__ void __launch_bounds__(kThreads, ResidentBlocks(kUnits, kKeyBits))
    DecodeAttention(const __grid_constant__ CudaAttentionParams params) {
  KVMIX_DYNAMIC_SHARED(uint8_t, shared);
  const CudaLayer& layer = params.layer;
  const int group = params.num_heads / layer.num_kv_heads;
  const int kv_head = blockIdx.y % layer.num_kv_heads;
  const int first_query = blockIdx.y / layer.num_kv_heads * kQueries;
  const int num_queries = min(kQueries, group - first_query);
  const int first_head = kv_head * group + first_query;
  const int item = blockIdx.z, row = layer.items[item].first_row;
  const Stream keys =
      StreamOf(layer, layer.key, item, kv_head, layer.flush_before_attention);
  const Stream values =
      StreamOf(layer, layer.value, item, kv_head, layer.flush_before_attention);
  const int key_bits = kKeyBits != 0 ? kKeyBits : layer.key.format.bits;
  const int value_bits = kValueBits != 0 ? kValueBits : layer.value.format.bits;
  const int value_group = layer.value.format.group;
  const int warp = threadIdx.x / 32;
  const Lane lane = MyLane();

  const int first_seen =
      params.sliding_window > 0 ? max(0, keys.end - params.sliding_window) : 0;
  const Tiles tiles = TilesOf(keys, first_seen, keys.end);
  const int per_split =
      (tiles.last - tiles.first + gridDim.x - 1) / static_cast<int>(gridDim.x);
  const int begin = tiles.first + static_cast<int>(blockIdx.x) * per_split;
  const int end = min(begin + per_split, tiles.last);

  // The ring.
  const int key_group = layer.key.format.group;
  const PackedSide key_sizes =
      SizesOf(key_bits, true, key_group, kUnits * kUnit);
  const PackedSide value_sizes =
      SizesOf(value_bits, false, value_group, kUnits * kUnit);
  const int key_bytes = key_sizes.codes + key_sizes.scales;
  const int stage_bytes = key_bytes + value_sizes.codes + value_sizes.scales;
  uint8_t* const ring = shared + warp * kStages * stage_bytes;
  const auto request = [&](int index, int stage) {
    const int position = (index - tiles.sinks) * kTile;  // < 0: of sinks
    if (index < end && position >= 0) {
      uint8_t* const to = ring + stage * stage_bytes;
      if (position < keys.packed)
        CopyPacked<kUnits, kKeyBits == 0 ? 8 : kKeyBits>(
            keys, key_sizes, key_group, position, to);
      if (position < values.packed)
        CopyPacked<kUnits, kValueBits == 0 ? 8 : kValueBits>(
            values, value_sizes, kTile, position, to + key_bytes);
    }
    ptx::CpAsyncCommit();
  };
  for (int i = 0; i < kStages - 1; ++i) request(begin + warp + i * kWarps, i);

  Queries<kUnits> q;
  const float power = ReadQueries<kUnits>(params, row, first_head + lane.g,
                                          lane.g < num_queries, q);
  const float powers[2] = {__shfl_sync(kAllLanes, power, 8 * lane.t),
                           __shfl_sync(kAllLanes, power, 8 * lane.t + 4)};
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  Output<kUnits> out = {};

  int stage = 0;
  for (int index = begin + warp; index < end; index += kWarps) {
    ptx::CpAsyncWait<kStages - 2>();
    __syncwarp();  // all lanes' copies are there, and the last tile is done
                   // with
    request(index + (kStages - 1) * kWarps,
            stage == 0 ? kStages - 1 : stage - 1);
    const Tile tile = TileAt(keys, values, tiles, first_seen, index);
    const uint8_t* const packed = ring + stage * stage_bytes;
    stage = stage + 1 == kStages ? 0 : stage + 1;

    Scores scores;
    if (tile.packed_keys > 0)
      scores = ScorePackedOf<kUnits, kKeyBits>(key_bits, packed, q);
    if (tile.packed_keys < tile.last) {
      const Scores half = ScoreHalf<kUnits>(HalfTile(keys, tile),
                                            tile.packed_keys, tile.last, q);
#pragma unroll
      for (int j = 0; j < kRows; ++j)
        for (int i = 0; i < 2; ++i)
          if (8 * j + lane.g >= tile.packed_keys) scores.x[j][i] = half.x[j][i];
    }

    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int r = 8 * j + lane.g;
      const bool seen = r >= tile.first && r < tile.last;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        scores.x[j][i] = seen ? scores.x[j][i] * powers[i] : -INFINITY;
        largest[i] = fmaxf(largest[i], scores.x[j][i]);
      }
    }
    WarpReduceEach<4, 8, 16>(largest, MaxOf());
    if (__any_sync(kAllLanes, largest[0] > max[0] || largest[1] > max[1])) {
      float factors[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float next = fmaxf(max[i], largest[i]);
        factors[i] = exp2f(max[i] - next);
        max[i] = next;
        sum[i] *= factors[i];
      }
      out.Rescale(factors[0], factors[1]);
    }
    Weights p;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const float p0 = exp2f(scores.x[j][0] - max[0]);
      const float p1 = exp2f(scores.x[j][1] - max[1]);
      sum[0] += p0;
      sum[1] += p1;
      p.x[j] = ptx::MovMatrix(AsBits(__floats2half2_rn(p0, p1)));
    }

    const bool mixed = tile.packed_values > 0 && tile.packed_values < tile.last;
    if (tile.packed_values > 0) {
      out.Become(true, value_bits);
      AddPackedOf<kUnits, kValueBits>(
          value_bits, packed + key_bytes, value_group,
          mixed ? p.Only(0, tile.packed_values) : p, out);
    }
    if (tile.packed_values < tile.last) {
      out.Become(false, value_bits);
      AddHalf<kUnits>(HalfTile(values, tile), tile.packed_values, tile.last,
                      mixed ? p.Only(tile.packed_values, kTile) : p, out);
    }
  }
  ptx::CpAsyncWait<0>();
  __syncthreads();  // the ring's memory holds the warps' parts from here on
  WritePart<kUnits>(max, sum, out, value_bits, PartOf<kUnits>(shared, warp));
  __syncthreads();
  CombineWarps<kUnits>(params, shared, row, first_head, num_queries);
}

// ---- Which kernel ----

using Kernel = void (*)(CudaAttentionParams);
struct Choice {
  Kernel kernel;
  const char* name;
};

template <int kUnits>
Choice Choose(int key_bits, int value_bits) {
#define KVMIX_DECODE(k, v)              \
  if (key_bits == k && value_bits == v) \
  return {DecodeAttention<kUnits, k, v>, "decode, tensor cores, K" #k " V" #v}
  KVMIX_DECODE(2, 2);
  KVMIX_DECODE(2, 4);
  KVMIX_DECODE(3, 3);
  KVMIX_DECODE(3, 4);
  KVMIX_DECODE(4, 4);
#undef KVMIX_DECODE
  if (key_bits == 16 && value_bits == 16)
    return {DecodeAttention<kUnits, 16, 16>, "decode, tensor cores, half"};
  return {DecodeAttention<kUnits, 0, 0>, "decode, tensor cores, any bits"};
}

Choice Choose(const CudaFormat& key, const CudaFormat& value, int head_dim) {
  if (key.layout == CudaLayout::kString || value.layout == CudaLayout::kString)
    return {nullptr, ""};
  switch (head_dim) {
    case 64:
      return Choose<2>(key.bits, value.bits);
    case 128:
      return Choose<4>(key.bits, value.bits);
    default:
      return {nullptr, ""};
  }
}

}  // namespace

bool CudaDecodeReads(const CudaFormat& key, const CudaFormat& value,
                     int head_dim) {
  return Choose(key, value, head_dim).kernel != nullptr;
}

const char* CudaDecodeName(const CudaFormat& key, const CudaFormat& value,
                           int head_dim) {
  return Choose(key, value, head_dim).name;
}

cudaError_t CudaDecodeAttention(const CudaAttentionParams& params,
                                cudaStream_t stream) {
  const CudaLayer& layer = params.layer;
  const Kernel kernel =
      Choose(layer.key.format, layer.value.format, layer.head_dim).kernel;
  const CudaFormat &k = layer.key.format, &v = layer.value.format;
  const PackedSide key = SizesOf(k.bits, true, k.group, layer.head_dim);
  const PackedSide value = SizesOf(v.bits, false, v.group, layer.head_dim);
  const int ring =
      kWarps * kStages * (key.codes + key.scales + value.codes + value.scales);
  const int parts = layer.head_dim == 64 ? PartBytes<2>() : PartBytes<4>();
  const int bytes = ring > parts ? ring : parts;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int group = params.num_heads / layer.num_kv_heads;
  const dim3 grid(params.splits,
                  layer.num_kv_heads * ((group + kQueries - 1) / kQueries),
                  layer.num_items);
  return Launch(kernel, grid, dim3(kThreads), bytes, stream, params);
}

}  // namespace kvmix
