// Attention of any chunk over any format (FlashAttention: Dao et al., arXiv
// 2205.14135, with the query rows of all heads of a KV head in one tile).
//
// A block of threads has 16 query rows a warp and walks the cache in tiles of
// 32 tokens, which it turns into half in shared memory, once for all of its
// rows. Row r is query r / group of the item, query head r % group of the KV
// head.
#include "attention/cuda_attention.h"
#include "attention/cuda_block.h"
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

constexpr int kWarpRows = 16;
constexpr int kManyWarps = 4;

// Rows of kD numbers and 8 more, so that eight rows lie in different banks.
// Channels from head_dim on are 0.
template <int kD>
struct SharedTile {
  static constexpr int kStride = kD + 8;
  __half* x;
  __device__ __forceinline__ __half* Row(int row) const {
    return x + row * kStride;
  }
};

// ---- Tiles in half ----

__device__ __forceinline__ float CodeNumber(uint32_t code) {
  return __uint_as_float(0x4b000000u | code) - 8388608.0f;  // 2^23
}

// Unit `unit` of 32 packed tokens. Rows from `last` on are left alone.
template <int kBits, int kD>
__device__ __forceinline__ void DecodeUnit(const uint8_t* codes,
                                           const __half* scales,
                                           const __half* zeros, bool keys,
                                           int units, int unit, int last,
                                           SharedTile<kD> to) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  uint32_t words[kBits];
#pragma unroll
  for (int w = 0; w < kBits; ++w)
    words[w] = reinterpret_cast<const uint32_t*>(
        codes)[WordIndex(kBits, units, unit, w, lane)];
#pragma unroll
  for (int c = 0; c < kSets; ++c) {
    const float2 scale =
        __half22float2(*reinterpret_cast<const __half2*>(scales + 2 * c));
    const float2 zero =
        __half22float2(*reinterpret_cast<const __half2*>(zeros + 2 * c));
    __half2 pairs[kRows];  // e = 0, 1
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const uint32_t pair = Pair<kBits>(words, c, j) >> CodeBit(kBits, j);
      pairs[j] =
          __floats2half2_rn(fmaf(CodeNumber(pair & 0xffffu), scale.x, zero.x),
                            fmaf(CodeNumber(pair >> 16), scale.y, zero.y));
    }
    if (keys) {
#pragma unroll
      for (int j = 0; j < kRows; ++j)
        if (8 * j + g < last)
          *reinterpret_cast<__half2*>(to.Row(8 * j + g) + unit * kUnit + 8 * t +
                                      2 * c) = pairs[j];
      continue;
    }
    const int token = 8 * c + 2 * t;
    __half* const row = to.Row(token) + unit * kUnit + 4 * g;
#pragma unroll
    for (int j = 0; j < kRows; j += 2) {
      if (token < last)
        *reinterpret_cast<__half2*>(row + j) =
            __lows2half2(pairs[j], pairs[j + 1]);
      if (token + 1 < last)
        *reinterpret_cast<__half2*>(row + SharedTile<kD>::kStride + j) =
            __highs2half2(pairs[j], pairs[j + 1]);
    }
  }
}

template <int kBits, int kD>
__device__ void DecodeFragments(const Stream& s, int position, int last,
                                SharedTile<kD> to) {
  const CudaFormat& format = s.side->format;
  const int units = s.head_dim / kUnit, t = threadIdx.x % 4;
  const uint8_t* const block =
      s.blocks +
      static_cast<int64_t>(position / format.block_tokens) * format.block_bytes;
  const int part = position % format.block_tokens / kTile;
  const auto* scales =
      reinterpret_cast<const __half*>(block + format.scales_offset) + 8 * t;
  const auto* zeros =
      reinterpret_cast<const __half*>(block + format.zeros_offset) + 8 * t;
  const int warps = blockDim.x / 32;
  for (int unit = threadIdx.x / 32; unit < units; unit += warps) {
    const int scale_row = s.side->keys ? unit : unit * kUnit / format.group;
    DecodeUnit<kBits, kD>(block + part * 4 * CodeWords(kBits, units),
                          scales + scale_row * kUnit, zeros + scale_row * kUnit,
                          s.side->keys, units, unit, last, to);
  }
}

// A number of a block of strings.
__device__ float StringNumber(const CudaFormat& format, const uint8_t* block,
                              int head_dim, int token, int channel) {
  const CudaCode at = StringCode(format, block, head_dim, token, channel);
  const float scale = __half2float(
      reinterpret_cast<const __half*>(block + format.scales_offset)[at.group]);
  const float zero = __half2float(
      reinterpret_cast<const __half*>(block + format.zeros_offset)[at.group]);
  return CodeNumber(at.code) * (at.last ? scale * format.last_scale : scale) +
         zero;
}

template <int kD>
__device__ void DecodeStrings(const Stream& s, int position, int last,
                              SharedTile<kD> to) {
  const CudaFormat& format = s.side->format;
  for (int i = threadIdx.x; i < last * s.head_dim; i += blockDim.x) {
    const int row = i / s.head_dim, channel = i % s.head_dim;
    const int block = (position + row) / format.block_tokens;
    to.Row(row)[channel] = __float2half_rn(StringNumber(
        format, s.blocks + static_cast<int64_t>(block) * format.block_bytes,
        s.head_dim, (position + row) % format.block_tokens, channel));
  }
}

// Rows [0, packed) of a tile from packed blocks, rows [packed, last) as they
// are.
template <int kD>
__device__ void ReadTile(const Stream& s, const Tile& tile, int packed,
                         SharedTile<kD> to) {
  const CudaFormat& format = s.side->format;
  if (packed > 0) {
    if (format.layout == CudaLayout::kString) {
      DecodeStrings<kD>(s, tile.position, packed, to);
    } else {
      WithBits(format.bits, [&](auto b) {
        DecodeFragments<b.value, kD>(s, tile.position, packed, to);
      });
    }
  }
  const int pieces = s.head_dim / 8;  // 16 bytes each
  for (int i = threadIdx.x; i < (tile.last - packed) * pieces;
       i += blockDim.x) {
    const int row = packed + i / pieces, piece = i % pieces;
    reinterpret_cast<uint4*>(to.Row(row))[piece] =
        reinterpret_cast<const uint4*>(HalfRow(s, tile.token + row))[piece];
  }
}

// ---- The kernel ----

struct Rows {
  int first, num;     // of the item's query rows, those of this block
  int group, head;    // query heads of the KV head, the first one
  int chunk_row;      // of the item's first query
  int tokens_before;  // the item's first query
  __device__ __forceinline__ bool Real(int r) const { return r < num; }
  __device__ __forceinline__ int Query(int r) const {
    return (first + r) / group;
  }
  __device__ __forceinline__ int Head(int r) const {
    return head + (first + r) % group;
  }
  // The token of row r's query.
  __device__ __forceinline__ int Token(int r) const {
    return tokens_before + Query(r);
  }
};

// Queries times scale and log2(e), over powers of two (`powers`, one a row).
template <int kD, typename T>
__device__ __forceinline__ void ReadQueries(const CudaAttentionParams& params,
                                            const T* queries, const Rows& rows,
                                            SharedTile<kD> to, float* powers) {
  const int lane = threadIdx.x % 32, head_dim = params.layer.head_dim;
#pragma unroll 4
  for (int i = 0; i < kWarpRows; ++i) {
    const int r = threadIdx.x / 32 * kWarpRows + i;
    const T* const from = queries +
                          static_cast<int64_t>(rows.chunk_row + rows.Query(r)) *
                              params.queries.stride +
                          static_cast<int64_t>(rows.Head(r)) * head_dim;
    float x[kD / 32], largest = 0;
#pragma unroll
    for (int k = 0; k < kD / 32; ++k) {
      const int d = 32 * k + lane;
      x[k] = rows.Real(r) && d < head_dim
                 ? ToFloat(from[d]) * (params.scale * kLog2E)
                 : 0.0f;
      largest = fmaxf(largest, fabsf(x[k]));
    }
    largest = WarpReduce<1, 2, 4, 8, 16>(largest, MaxOf());
    const PowerOfTwo power = PowerAbove(largest);
#pragma unroll
    for (int k = 0; k < kD / 32; ++k)
      to.Row(r)[32 * k + lane] = __float2half_rn(x[k] * power.inverse);
    if (lane == 0) powers[r] = power.value;
  }
}

template <int kD>
struct Softmax {
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {};  // rows g, g + 8
  float out[kD / 8][4] = {};
};

// Scores of one tile: [8 tokens each][rows g, g, g + 8, g + 8].
template <int kD>
__device__ __forceinline__ void ScoreTile(SharedTile<kD> queries,
                                          SharedTile<kD> keys,
                                          float (&scores)[4][4]) {
  const int lane = threadIdx.x % 32, own = threadIdx.x / 32 * kWarpRows;
  const __half* const a = queries.Row(own + lane % 16) + lane / 16 * 8;
  const __half* const b = keys.Row(lane / 16 * 8 + lane % 8) + lane / 8 % 2 * 8;
  // Steps of 16 channels; more than two at once would not fit the registers.
  ptx::MmaOfRows<false, kD / 16, 2, 2>(
      scores, [=](int s) { return a + 16 * s; },
      [=](int s, int p) {
        return b + 16 * p * SharedTile<kD>::kStride + 16 * s;
      });
}

template <int kD>
__device__ __forceinline__ void AddTile(const float (&weights)[4][4],
                                        SharedTile<kD> values,
                                        Softmax<kD>& softmax) {
  const int lane = threadIdx.x % 32;
  const __half* const b = values.Row(lane % 16) + lane / 16 * 8;
  // Steps of 16 tokens.
  ptx::MmaOfRows<true, kTile / 16, kD / 16, kTile / 16>(
      softmax.out,
      [&](int s) {
        const auto pair = [&](int n, int i) {
          return AsBits(__floats2half2_rn(weights[2 * s + n][i],
                                          weights[2 * s + n][i + 1]));
        };
        return ptx::Fragment{{pair(0, 0), pair(0, 2), pair(1, 0), pair(1, 2)}};
      },
      [=](int s, int p) {
        return b + 16 * s * SharedTile<kD>::kStride + 16 * p;
      });
}

// Scores become weights; what was summed so far is rescaled.
template <int kD>
__device__ __forceinline__ void Exponentiate(
    const float (&powers)[2], const int (&last_seen)[2], int sliding_window,
    const Tile& tile, float (&scores)[4][4], Softmax<kD>& softmax) {
  const int t = threadIdx.x % 4;
  float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int n = 0; n < 4; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 8 * n + 2 * t + i % 2, token = tile.token + row;
      const int last = last_seen[i / 2];
      const bool seen = row < tile.last && token <= last &&
                        (sliding_window == 0 || token > last - sliding_window);
      scores[n][i] = seen ? scores[n][i] * powers[i / 2] : -INFINITY;
      largest[i / 2] = fmaxf(largest[i / 2], scores[n][i]);
    }
  WarpReduceEach<1, 2>(largest, MaxOf());
  float factors[2], subtract[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float next = fmaxf(softmax.max[h], largest[h]);
    subtract[h] = next == -INFINITY ? 0.0f : next;  // a row that saw no token
    factors[h] = exp2f(softmax.max[h] - subtract[h]);
    softmax.max[h] = next;
    softmax.sum[h] *= factors[h];
  }
#pragma unroll
  for (int n = 0; n < 4; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[n][i] = exp2f(scores[n][i] - subtract[i / 2]);
      softmax.sum[i / 2] += scores[n][i];
    }
#pragma unroll
  for (int d = 0; d < kD / 8; ++d)
#pragma unroll
    for (int i = 0; i < 4; ++i) softmax.out[d][i] *= factors[i / 2];
}

template <int kD>
__device__ void WriteRows(const CudaAttentionParams& params, const Rows& rows,
                          Softmax<kD>& softmax) {
  const int lane = threadIdx.x % 32, t = lane % 4;
  const int head_dim = params.layer.head_dim;
  WarpReduceEach<1, 2>(softmax.sum, SumOf());
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float sum = softmax.sum[h];
    const int r = threadIdx.x / 32 * kWarpRows + lane / 4 + 8 * h;
    if (!rows.Real(r)) continue;
    const int64_t row = rows.chunk_row + rows.Query(r);
    const int64_t at =
        (row * params.num_heads + rows.Head(r)) * params.splits + blockIdx.y;
    if (params.splits > 1 && t == 0) {
      params.partial_max[at] = softmax.max[h];
      params.partial_sum[at] = sum;
    }
#pragma unroll
    for (int n = 0; n < kD / 8; ++n)
      for (int e = 0; e < 2; ++e) {
        const int d = 8 * n + 2 * t + e;
        if (d >= head_dim) continue;
        const float x = softmax.out[n][2 * h + e];
        if (params.splits > 1) {
          params.partial_out[at * head_dim + d] = x;
        } else {
          StoreNumber(params.out.data, params.out.type,
                      row * params.out.stride +
                          static_cast<int64_t>(rows.Head(r)) * head_dim + d,
                      x / sum);
        }
      }
  }
}

template <int kD, int kWarps>
constexpr int SharedBytes() {
  constexpr int kRows = kWarps * kWarpRows;
  return (kRows + 2 * kTile) * SharedTile<kD>::kStride * 2 + kRows * 4;
}

// grid: (block of rows, KV head), splits, items; the first may be more than the
// 65,535 that the others are limited to
template <int kD, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, kD == 256 ? 1 : 8 / kWarps)
    TiledAttention(const __grid_constant__ CudaAttentionParams params) {
  constexpr int kBlockRows = kWarps * kWarpRows;
  KVMIX_DYNAMIC_SHARED(__half, shared);
  const CudaLayer& layer = params.layer;
  const int kv_head = blockIdx.x % layer.num_kv_heads;
  const CudaItem item = layer.items[blockIdx.z];
  Rows rows;
  rows.group = params.num_heads / layer.num_kv_heads;
  rows.head = kv_head * rows.group;
  rows.first = static_cast<int>(blockIdx.x) / layer.num_kv_heads * kBlockRows;
  rows.num = min(kBlockRows, item.num_tokens * rows.group - rows.first);
  rows.chunk_row = item.first_row;
  if (rows.num <= 0) return;
  const bool flushed = item.num_tokens == 1 && layer.flush_before_attention;
  const Stream keys = StreamOf(layer, layer.key, blockIdx.z, kv_head, flushed);
  const Stream values =
      StreamOf(layer, layer.value, blockIdx.z, kv_head, flushed);
  rows.tokens_before = keys.end - item.num_tokens;

  const SharedTile<kD> queries{shared};
  const SharedTile<kD> key_tile{queries.Row(kBlockRows)};
  const SharedTile<kD> value_tile{key_tile.Row(kTile)};
  float* const all_powers = reinterpret_cast<float*>(value_tile.Row(kTile));
  for (int i = threadIdx.x; i < 2 * kTile * SharedTile<kD>::kStride;
       i += blockDim.x)
    key_tile.x[i] = __half(0.0f);
  WithType(params.queries.data, params.queries.type, [&](auto* numbers) {
    ReadQueries<kD>(params, numbers, rows, queries, all_powers);
  });
  __syncthreads();
  const int own = threadIdx.x / 32 * kWarpRows + threadIdx.x % 32 / 4;
  const float powers[2] = {all_powers[own], all_powers[own + 8]};
  const int last_seen[2] = {rows.Token(own), rows.Token(own + 8)};

  const int first_seen = params.sliding_window > 0
                             ? max(0, rows.Token(0) + 1 - params.sliding_window)
                             : 0;
  const Tiles tiles = TilesOf(keys, first_seen, rows.Token(rows.num - 1) + 1);
  const int per_split =
      (tiles.last - tiles.first + gridDim.y - 1) / static_cast<int>(gridDim.y);
  const int begin = tiles.first + static_cast<int>(blockIdx.y) * per_split;
  const int end = min(begin + per_split, tiles.last);
  Softmax<kD> softmax;
  for (int index = begin; index < end; ++index) {
    const Tile tile = TileAt(keys, values, tiles, first_seen, index);
    ReadTile<kD>(keys, tile, min(tile.packed_keys, tile.last), key_tile);
    ReadTile<kD>(values, tile, min(tile.packed_values, tile.last), value_tile);
    __syncthreads();
    float scores[4][4] = {};
    ScoreTile<kD>(queries, key_tile, scores);
    Exponentiate<kD>(powers, last_seen, params.sliding_window, tile, scores,
                     softmax);
    AddTile<kD>(scores, value_tile, softmax);
    __syncthreads();
  }
  WriteRows<kD>(params, rows, softmax);
}

template <int kD, int kWarps>
cudaError_t Run(const CudaAttentionParams& params, int rows,
                cudaStream_t stream) {
  constexpr int kBlockRows = kWarps * kWarpRows;
  const auto kernel = TiledAttention<kD, kWarps>;
  const int bytes = SharedBytes<kD, kWarps>();
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const dim3 grid(
      (rows + kBlockRows - 1) / kBlockRows * params.layer.num_kv_heads,
      params.splits, params.layer.num_items);
  return Launch(kernel, grid, dim3(32 * kWarps), bytes, stream, params);
}

template <int kD>
cudaError_t Run(const CudaAttentionParams& params, cudaStream_t stream) {
  const int rows =
      params.max_queries * (params.num_heads / params.layer.num_kv_heads);
  return rows > kWarpRows ? Run<kD, kManyWarps>(params, rows, stream)
                          : Run<kD, 1>(params, rows, stream);
}

// grid: heads, rows
__global__ void Combine(const __grid_constant__ CudaAttentionParams params) {
  const int head_dim = params.layer.head_dim;
  const int64_t row = blockIdx.y, head = blockIdx.x;
  const int64_t at = (row * params.num_heads + head) * params.splits;
  float largest = -INFINITY, sum = 0;
  for (int i = 0; i < params.splits; ++i)
    largest = fmaxf(largest, params.partial_max[at + i]);
  for (int i = 0; i < params.splits; ++i)
    sum += params.partial_sum[at + i] *
           PartWeight(params.partial_max[at + i], largest);
  for (int d = threadIdx.x; d < head_dim; d += blockDim.x) {
    float x = 0;
    for (int i = 0; i < params.splits; ++i)
      x += params.partial_out[(at + i) * head_dim + d] *
           PartWeight(params.partial_max[at + i], largest);
    StoreNumber(params.out.data, params.out.type,
                row * params.out.stride + head * head_dim + d, x / sum);
  }
}

}  // namespace

cudaError_t CudaTiledAttention(const CudaAttentionParams& params,
                               cudaStream_t stream) {
  const int head_dim = params.layer.head_dim;
  return head_dim <= 64    ? Run<64>(params, stream)
         : head_dim <= 128 ? Run<128>(params, stream)
                           : Run<256>(params, stream);
}

cudaError_t CudaCombine(const CudaAttentionParams& params, int rows,
                        cudaStream_t stream) {
  return Launch(Combine, dim3(params.num_heads, rows), dim3(128), 0, stream,
                params);
}

}  // namespace kvmix
