// Where the tokens of one stream lie on the device. Device code alone; included
// by .cu files.
#pragma once

#include "attention/cuda_attention_params.h"
#include "kvmix/base/cuda.h"
#include "kvmix/base/ptx.h"

namespace kvmix {
namespace cuda_stream {

// The keys or the values of one KV head of one item. A token n < sinks is a
// sink; position p = n - sinks, else, is packed if p < packed.
struct Stream {
  const CudaSide* side;
  const CudaPlace* place;
  uint8_t* blocks;
  __half* chunk;    // the row of the item's first token
  int chunk_row;    // numbers from one row of the chunk to the next
  int chunk_begin;  // tokens from here on lie in the chunk's buffer
  int sinks;        // sink tokens, of those stored
  int packed;       // positions
  int end;          // tokens
  int head_dim;
  int max_sinks;

  // Read when they are needed: attention has no registers for them.
  __device__ __forceinline__ __half* window() const {
    return ptx::Global(reinterpret_cast<__half*>(place->window));
  }
  __device__ __forceinline__ __half* sink_rows() const {
    return ptx::Global(reinterpret_cast<__half*>(place->sinks));
  }
};

__device__ __forceinline__ CudaCounts CountsOf(const CudaLayer& layer,
                                               const CudaSide& side, int index,
                                               int head) {
  return side
      .counts[index * layer.counted_heads + min(head, layer.counted_heads - 1)];
}

// flushed: as once the chunk has packed what it will.
__device__ __forceinline__ Stream StreamOf(const CudaLayer& layer,
                                           const CudaSide& side, int index,
                                           int head, bool flushed) {
  const CudaItem item = layer.items[index];
  const CudaCounts counts = CountsOf(layer, side, index, head);
  const int head_dim = layer.head_dim;
  Stream s;
  s.side = &side;
  s.place = side.places + item.sequence * layer.num_kv_heads + head;
  s.blocks = ptx::Global(s.place->blocks);
  s.chunk_row = layer.num_kv_heads * head_dim;
  s.chunk = reinterpret_cast<__half*>(side.chunk) +
            static_cast<int64_t>(item.first_row) * s.chunk_row +
            head * head_dim;
  s.end = counts.tokens_before + item.num_tokens;
  s.chunk_begin = item.num_tokens > 1 ? counts.tokens_before : s.end;
  s.sinks = min(s.end, layer.max_sinks);
  s.packed = flushed ? counts.packed_after : counts.packed_before;
  s.head_dim = head_dim;
  s.max_sinks = layer.max_sinks;
  return s;
}

// Where token n has its place once the chunk is finished, unless packed.
__device__ __forceinline__ __half* HomeOf(const Stream& s, int n) {
  if (n < s.max_sinks)
    return s.sink_rows() + static_cast<int64_t>(n) * s.head_dim;
  const int slot = (n - s.max_sinks) % s.side->window_tokens;
  return s.window() + static_cast<int64_t>(slot) * s.head_dim;
}
// Where token n, not packed, lies now.
__device__ __forceinline__ const __half* HalfRow(const Stream& s, int n) {
  if (n >= s.chunk_begin)
    return s.chunk + static_cast<int64_t>(n - s.chunk_begin) * s.chunk_row;
  return HomeOf(s, n);
}

constexpr float kLog2E = 1.44269504f;  // softmax is in base 2
constexpr unsigned kAllLanes = ~0u;
constexpr int kTile = 32;  // tokens

// 32 tokens of the cache, aligned as packed blocks are; rows [first, last) of
// them are seen.
struct Tile {
  int position;  // after the sinks; < 0: of sinks
  int token;     // of row 0
  int first, last;
  int packed_keys, packed_values;  // rows below are packed
};

// Tiles that hold sinks, and those that hold tokens [first, last).
struct Tiles {
  int sinks, first, last;
};

__device__ __forceinline__ Tiles TilesOf(const Stream& s, int first_seen,
                                         int last_seen) {
  Tiles tiles;
  tiles.sinks = (s.sinks + kTile - 1) / kTile;
  const auto tile_of = [&](int token) {
    return token < s.sinks ? token / kTile
                           : tiles.sinks + (token - s.sinks) / kTile;
  };
  tiles.first = tile_of(first_seen);
  tiles.last = tile_of(last_seen - 1) + 1;
  return tiles;
}

__device__ __forceinline__ Tile TileAt(const Stream& keys, const Stream& values,
                                       const Tiles& tiles, int first_seen,
                                       int index) {
  Tile tile;
  if (index < tiles.sinks) {
    tile.token = index * kTile;
    tile.position = -1;
    tile.last = min(kTile, keys.sinks - tile.token);
    tile.packed_keys = tile.packed_values = 0;
  } else {
    tile.position = (index - tiles.sinks) * kTile;
    tile.token = keys.sinks + tile.position;
    tile.last = min(kTile, keys.end - tile.token);
    tile.packed_keys = min(max(keys.packed - tile.position, 0), kTile);
    tile.packed_values = min(max(values.packed - tile.position, 0), kTile);
  }
  tile.first = max(first_seen - tile.token, 0);
  return tile;
}

// The power of two above x: x / value lies in [0.5, 1).
struct PowerOfTwo {
  float value, inverse;
};
__device__ __forceinline__ PowerOfTwo PowerAbove(float x) {
  const int exponent = static_cast<int>(__float_as_uint(x) >> 23) - 126;
  const int power = min(max(exponent, -100), 100);
  return {__uint_as_float((127 + power) << 23),
          __uint_as_float((127 - power) << 23)};
}

// A part's weight, given the largest score of all parts. A part without tokens
// has none.
__device__ __forceinline__ float PartWeight(float max, float largest) {
  return max == -INFINITY ? 0.0f : exp2f(max - largest);
}

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(__half x) { return __half2float(x); }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
// body(numbers): with the type known, so that loads wait for nothing.
template <typename Body>
__device__ __forceinline__ void WithType(const void* data, CudaNumber type,
                                         const Body& body) {
  if (type == CudaNumber::kFloat) {
    body(static_cast<const float*>(data));
  } else if (type == CudaNumber::kHalf) {
    body(static_cast<const __half*>(data));
  } else {
    body(static_cast<const __nv_bfloat16*>(data));
  }
}
__device__ __forceinline__ void StoreNumber(void* data, CudaNumber type,
                                            int64_t i, float x) {
  if (type == CudaNumber::kFloat) {
    static_cast<float*>(data)[i] = x;
  } else if (type == CudaNumber::kHalf) {
    static_cast<__half*>(data)[i] = __float2half(x);
  } else {
    static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16(x);
  }
}

__device__ __forceinline__ __half2 AsHalf2(uint32_t bits) {
  return *reinterpret_cast<const __half2*>(&bits);
}
__device__ __forceinline__ uint32_t AsBits(__half2 x) {
  return *reinterpret_cast<const uint32_t*>(&x);
}

}  // namespace cuda_stream
}  // namespace kvmix
