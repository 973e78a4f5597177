// Scores and softmax in float, a tile of 32 tokens after the other, keys
// decoded into shared memory. A warp has a query row, a lane a token. Sums run
// in a fixed order, so that results do not depend on that of threads.
#include "attention/cuda_numbers.h"
#include "attention/cuda_observe.h"
#include "attention/cuda_stream.h"
#include "kvmix/base/warp.h"

namespace kvmix {
namespace {

using namespace cuda_stream;  // NOLINT

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kRanges = kCudaScoreRanges;

// Keys of a tile: rows of D numbers and one more, so that lanes read different
// banks.
struct KeyTile {
  float* x;
  int head_dim;
  __device__ __forceinline__ const float* Row(int t) const {
    return x + t * (head_dim + 1);
  }
};
int TileBytes(int head_dim) { return kTile * (head_dim + 1) * 4; }

// Tokens [first, first + 32) of those there. All threads of the block.
__device__ void LoadTile(const Stream& s, int first, const KeyTile& to) {
  const int count = min(kTile, s.end - first);
  for (int i = threadIdx.x; i < count * s.head_dim; i += blockDim.x) {
    const int t = i / s.head_dim, d = i % s.head_dim;
    to.x[t * (s.head_dim + 1) + d] = StoredNumber(s, first + t, d);
  }
  __syncthreads();
}

__device__ __forceinline__ float Score(const float* query, float scale,
                                       const float* key, int head_dim) {
  float sum = 0;
  for (int d = 0; d < head_dim; ++d) sum += query[d] * scale * key[d];
  return sum;
}

__device__ __forceinline__ float MaxOfWarp(float x) {
  return WarpReduce<1, 2, 4, 8, 16>(x, MaxOf());
}
__device__ __forceinline__ float SumOfWarp(float x) {
  return WarpReduce<1, 2, 4, 8, 16>(x, SumOf());
}

// The query rows of one KV head of an item, row r being query r / group, query
// head r % group.
struct Rows {
  const CudaObservation& o;
  CudaItem item;
  int kv_head, group, tokens_before;

  __device__ __forceinline__ int count() const {
    return item.num_tokens * group;
  }
  __device__ __forceinline__ const float* Query(int r) const {
    return o.queries + (item.first_row + r / group) * o.stride +
           (kv_head * group + r % group) * o.layer.head_dim;
  }
  __device__ __forceinline__ float* Partials(int r) const {
    const int64_t row = item.first_row + r / group;
    return o.partials +
           (row * o.num_heads + kv_head * group + r % group) * kRanges * 2;
  }
  // A lane's score, or -infinity where the query does not see the token.
  __device__ __forceinline__ float ScoreOf(int r, int first, int end,
                                           const KeyTile& tile) const {
    const int token = first + threadIdx.x % 32;
    if (token >= end || token > tokens_before + r / group) return -INFINITY;
    return Score(Query(r), o.scale, tile.Row(threadIdx.x % 32),
                 o.layer.head_dim);
  }
};

__device__ __forceinline__ Stream KeysOf(const CudaObservation& o, int item,
                                         int kv_head) {
  const bool flushed =
      o.layer.items[item].num_tokens == 1 && o.layer.flush_before_attention;
  return StreamOf(o.layer, o.layer.key, item, kv_head, flushed);
}
__device__ __forceinline__ Rows RowsOf(const CudaObservation& o, int item,
                                       int kv_head, const Stream& keys) {
  const CudaItem own = o.layer.items[item];
  return {o, own, kv_head, o.num_heads / o.layer.num_kv_heads,
          keys.end - own.num_tokens};
}

// grid: (range, four query rows), KV heads, items
__global__ void __launch_bounds__(kThreads)
    SumScores(const __grid_constant__ CudaObservation o) {
  KVMIX_DYNAMIC_SHARED(float, shared);
  const int range = blockIdx.x % kRanges, kv_head = blockIdx.y;
  const Stream keys = KeysOf(o, blockIdx.z, kv_head);
  const Rows rows = RowsOf(o, blockIdx.z, kv_head, keys);
  const int first_row = static_cast<int>(blockIdx.x) / kRanges * kWarps;
  const int r = first_row + static_cast<int>(threadIdx.x) / 32;
  if (first_row >= rows.count()) return;
  const KeyTile tile{shared, keys.head_dim};
  const int tiles = (keys.end + kTile - 1) / kTile;
  float max = -INFINITY, sum = 0;
  for (int i = range; i < tiles; i += kRanges) {
    LoadTile(keys, i * kTile, tile);
    if (r < rows.count()) {
      const float score = rows.ScoreOf(r, i * kTile, keys.end, tile);
      const float next = fmaxf(max, MaxOfWarp(score));
      if (next > -INFINITY) {
        sum = sum * expf(max - next) + SumOfWarp(expf(score - next));
        max = next;
      }
    }
    __syncthreads();  // the tile is done with
  }
  if (r >= rows.count() || threadIdx.x % 32 != 0) return;
  rows.Partials(r)[2 * range] = max;
  rows.Partials(r)[2 * range + 1] = sum;
}

// grid: tiles, KV heads, items
__global__ void __launch_bounds__(kThreads)
    AddWeights(const __grid_constant__ CudaObservation o) {
  KVMIX_DYNAMIC_SHARED(float, shared);
  KVMIX_SHARED(float, sums, [kWarps][kTile]);
  const int kv_head = blockIdx.y, first = blockIdx.x * kTile;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Stream keys = KeysOf(o, blockIdx.z, kv_head);
  if (first >= keys.end) return;
  const Rows rows = RowsOf(o, blockIdx.z, kv_head, keys);
  const KeyTile tile{shared, keys.head_dim};
  LoadTile(keys, first, tile);
  float received = 0;
  for (int r = warp; r < rows.count(); r += kWarps) {
    const float* const part = rows.Partials(r) + 2 * (lane % kRanges);
    const float max = MaxOfWarp(part[0]);
    const float sum =
        SumOfWarp(lane < kRanges ? part[1] * expf(part[0] - max) : 0.0f);
    received += expf(rows.ScoreOf(r, first, keys.end, tile) - max) / sum;
  }
  sums[warp][lane] = received;
  __syncthreads();
  const int token = first + lane;
  if (warp != 0 || token >= keys.end) return;
  const CudaItem item = o.layer.items[blockIdx.z];
  const CudaPlace place =
      o.layer.key.places[item.sequence * o.layer.num_kv_heads + kv_head];
  float total = 0;
  for (int w = 0; w < kWarps; ++w) total += sums[w][lane];
  total /= static_cast<float>(rows.group);
  if (token < rows.tokens_before) total += place.received[token];
  float* const to =
      item.num_tokens == 1
          ? place.received
          : o.received + static_cast<int64_t>(
                             blockIdx.z * o.layer.num_kv_heads + kv_head) *
                             o.received_stride;
  to[token] = total;
}

// grid: newest tokens of an item, items
__global__ void __launch_bounds__(kThreads)
    KeepQueries(const __grid_constant__ CudaObservation o, float* recent,
                int window) {
  const CudaItem item = o.layer.items[blockIdx.y];
  const int t = item.num_tokens - 1 - static_cast<int>(blockIdx.x);
  if (t < 0) return;
  const int size = o.num_heads * o.layer.head_dim;
  const float* const from = o.queries + (item.first_row + t) * o.stride;
  float* const to = recent + (static_cast<int64_t>(item.sequence) * window +
                              (item.tokens_seen + t) % window) *
                                 size;
  for (int i = threadIdx.x; i < size; i += kThreads) to[i] = from[i];
}

// grid: tiles, KV heads
__global__ void __launch_bounds__(kThreads)
    ScoreQueries(const __grid_constant__ CudaLayer layer, int item,
                 const float* recent, int window, int count, int newest,
                 int num_heads, float scale, int stride, float* out) {
  KVMIX_DYNAMIC_SHARED(float, shared);
  const int kv_head = blockIdx.y, first = blockIdx.x * kTile;
  const Stream keys = StreamOf(layer, layer.key, item, kv_head, true);
  if (first >= keys.end) return;
  const KeyTile tile{shared, keys.head_dim};
  LoadTile(keys, first, tile);
  const int group = num_heads / layer.num_kv_heads, rows = count * group;
  const int token = first + threadIdx.x % 32;
  if (token >= keys.end) return;
  for (int r = threadIdx.x / 32; r < rows; r += kWarps) {
    const int n = newest - count + 1 + r / group;
    const int64_t at =
        static_cast<int64_t>(layer.items[item].sequence) * window + n % window;
    const float* const query =
        recent +
        (at * num_heads + kv_head * group + r % group) * layer.head_dim;
    out[(static_cast<int64_t>(kv_head) * rows + r) * stride + token] =
        Score(query, scale, tile.Row(threadIdx.x % 32), layer.head_dim);
  }
}

}  // namespace

cudaError_t CudaAddReceived(const CudaObservation& o, cudaStream_t stream) {
  const int bytes = TileBytes(o.layer.head_dim);
  const int rows = o.max_queries * (o.num_heads / o.layer.num_kv_heads);
  const cudaError_t error =
      Launch(SumScores,
             dim3((rows + kWarps - 1) / kWarps * kRanges, o.layer.num_kv_heads,
                  o.layer.num_items),
             dim3(kThreads), bytes, stream, o);
  if (error != cudaSuccess) return error;
  return Launch(AddWeights,
                dim3((o.max_stored + kTile - 1) / kTile, o.layer.num_kv_heads,
                     o.layer.num_items),
                dim3(kThreads), bytes, stream, o);
}

cudaError_t CudaKeepQueries(const CudaObservation& o, float* recent, int window,
                            cudaStream_t stream) {
  const int newest = o.max_queries < window ? o.max_queries : window;
  return Launch(KeepQueries, dim3(newest, o.layer.num_items), dim3(kThreads), 0,
                stream, o, recent, window);
}

cudaError_t CudaScoreQueries(const CudaLayer& layer, int item,
                             const float* recent, int window, int count,
                             int newest, int num_heads, float scale, int stride,
                             float* out, cudaStream_t stream) {
  return Launch(ScoreQueries,
                dim3((stride + kTile - 1) / kTile, layer.num_kv_heads),
                dim3(kThreads), TileBytes(layer.head_dim), stream, layer, item,
                recent, window, count, newest, num_heads, scale, stride, out);
}

}  // namespace kvmix
