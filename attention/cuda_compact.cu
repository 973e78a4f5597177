// Tokens leave: the others are copied, or quantized anew, into memory of their
// size. Nothing is moved in place, so all blocks of threads may work at once;
// the second kernel may add to blocks that the first one copied.
#include "attention/cuda_compact.h"
#include "attention/cuda_numbers.h"
#include "attention/cuda_pack.h"
#include "attention/cuda_stream.h"

namespace kvmix {
namespace {

using namespace cuda_stream;  // NOLINT
using cuda_pack::Pack;

constexpr int kThreads = 128;
constexpr int kTokensOfWorker = 32;  // about, of a block of threads

// A call, for packing reads numbers in many places.
__attribute__((noinline)) __device__ float KeptNumber(const Stream& s,
                                                      int token, int channel,
                                                      bool as_half) {
  const float x = StoredNumber(s, token, channel);
  return as_half ? __half2float(__float2half_rn(x)) : x;
}

// Tokens of a stream, in a new order; as_half: packed ones are rounded to half.
struct KeptNumbers {
  const Stream& s;
  const int* kept;
  bool as_half;

  struct RowNumbers {
    const Stream* s;
    int token, channel;
    bool as_half;
    __device__ __forceinline__ float operator[](int i) const {
      return KeptNumber(*s, token, channel + i, as_half);
    }
  };
  __device__ RowNumbers Row(int n, int channel) const {
    return {&s, kept[n], channel, as_half};
  }
};

struct Streams {
  Stream from, to;
  CudaCompaction plan;
  const int* kept;
};
// blockIdx.y: (KV head, side)
__device__ Streams StreamsOf(const CudaLayer& layer, int item,
                             const CudaCompaction* streams, const int* kept,
                             int stride) {
  const int head = blockIdx.y / 2;
  const bool of_keys = blockIdx.y % 2 == 0;
  Streams s;
  s.from = StreamOf(layer, of_keys ? layer.key : layer.value, item, head, true);
  const CudaCompaction& plan =
      streams[(of_keys ? 0 : layer.num_kv_heads) + head];
  s.plan = plan;
  s.kept = kept + static_cast<int64_t>(head) * stride;
  s.to = s.from;
  s.to.place = &plan.to;
  s.to.blocks = plan.to.blocks;
  return s;
}

// Tokens [begin, end) as half.
__device__ void StoreRows(const Streams& s, const KeptNumbers& numbers,
                          int begin, int end) {
  const int dim = s.to.head_dim;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (end - begin) * dim;
       i += gridDim.x * blockDim.x) {
    const int n = begin + i / dim, d = i % dim;
    HomeOf(s.to, n)[d] = __float2half_rn(numbers.Row(n, d)[0]);
  }
}

// grid: workers, (KV head, side)
__global__ void __launch_bounds__(kThreads)
    KeepPacked(const __grid_constant__ CudaLayer layer, int item,
               const CudaCompaction* streams, const int* kept, int stride) {
  const Streams s = StreamsOf(layer, item, streams, kept, stride);
  StoreRows(s, {s.from, s.kept, false}, 0, s.from.sinks);
  if (s.plan.received != nullptr) {
    for (int n = blockIdx.x * blockDim.x + threadIdx.x; n < s.plan.tokens;
         n += gridDim.x * blockDim.x)
      s.plan.to.received[n] = s.plan.received[s.kept[n]];
  }
  if (s.from.side->format.layout == CudaLayout::kNone) return;
  const CudaFormat& format = s.from.side->format;
  const int64_t blocks =
      (s.plan.whole + format.block_tokens - 1) / format.block_tokens;
  const int64_t pieces = blocks * format.block_bytes / 16;
  for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < pieces;
       i += gridDim.x * blockDim.x)
    reinterpret_cast<uint4*>(s.to.blocks)[i] =
        reinterpret_cast<const uint4*>(s.from.blocks)[i];
  Pack(s.to, KeptNumbers{s.from, s.kept, false}, s.plan.whole,
       s.plan.requantized);
}

// grid: workers, (KV head, side)
__global__ void __launch_bounds__(kThreads)
    PackAndKeepRest(const __grid_constant__ CudaLayer layer, int item,
                    const CudaCompaction* streams, const int* kept,
                    int stride) {
  const Streams s = StreamsOf(layer, item, streams, kept, stride);
  const KeptNumbers numbers{s.from, s.kept, true};
  // First, for packing leaves no register for what others need.
  StoreRows(s, numbers, s.from.sinks + s.plan.packed, s.plan.tokens);
  Pack(s.to, numbers, s.plan.requantized, s.plan.packed);
}

// grid: workers, KV heads
__global__ void __launch_bounds__(kThreads)
    ReadTokens(const __grid_constant__ CudaLayer layer, bool keys, int item,
               int stride, float* out) {
  const Stream s =
      StreamOf(layer, keys ? layer.key : layer.value, item, blockIdx.y, true);
  const int64_t first = static_cast<int64_t>(blockIdx.y) * stride;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < s.end * s.head_dim;
       i += gridDim.x * blockDim.x) {
    out[first * s.head_dim + i] =
        StoredNumber(s, i / s.head_dim, i % s.head_dim);
  }
}

unsigned Workers(int tokens) { return tokens / kTokensOfWorker + 1; }

}  // namespace

cudaError_t CudaCompact(const CudaLayer& layer, int item,
                        const CudaCompaction* streams, const int* kept,
                        int stride, cudaStream_t stream) {
  const dim3 grid(Workers(stride), 2 * layer.num_kv_heads);
  const cudaError_t error = Launch(KeepPacked, grid, dim3(kThreads), 0, stream,
                                   layer, item, streams, kept, stride);
  if (error != cudaSuccess) return error;
  return Launch(PackAndKeepRest, grid, dim3(kThreads), 0, stream, layer, item,
                streams, kept, stride);
}

cudaError_t CudaReadTokens(const CudaLayer& layer, bool keys, int item,
                           int stride, float* out, cudaStream_t stream) {
  return Launch(ReadTokens, dim3(Workers(stride), layer.num_kv_heads),
                dim3(kThreads), 0, stream, layer, keys, item, stride, out);
}

}  // namespace kvmix
