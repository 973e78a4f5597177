// Append, quantize, pack: one pass over the tokens that leave the window, none
// over what is packed already.
#include "attention/cuda_pack.h"
#include "attention/cuda_store.h"
#include "attention/cuda_stream.h"

namespace kvmix {
namespace {

using namespace cuda_stream;  // NOLINT
using cuda_layout::kUnit;
using cuda_pack::Pack;

constexpr int kThreads = 128;

// Rows of a stream that are not packed.
struct HalfNumbers {
  const Stream& s;
  struct HalfRowNumbers {
    const __half* x;
    __device__ __forceinline__ float operator[](int i) const {
      return __half2float(x[i]);
    }
  };
  __device__ __forceinline__ HalfRowNumbers Row(int n, int channel) const {
    return {HalfRow(s, n) + channel};
  }
};

__device__ __forceinline__ __half ToHalf(float x, int* unfit) {
  if (!(fabsf(x) < 65520.0f)) *unfit = 1;
  return __float2half_rn(x);
}

// Row `row` of a chunk, one KV head's numbers, to a row of its own.
__device__ __forceinline__ void StoreRow(const CudaRows& from, int row,
                                         int head, const CudaLayer& layer,
                                         __half* to) {
  WithType(from.data, from.type, [&](auto* numbers) {
    numbers += row * from.stride + static_cast<int64_t>(head) * layer.head_dim;
    for (int d = threadIdx.x; d < layer.head_dim; d += blockDim.x)
      to[d] = ToHalf(ToFloat(numbers[d]), layer.unfit);
  });
}

// grid: rows of the chunk, (KV head, side)
__global__ void AppendRows(const __grid_constant__ CudaLayer layer,
                           const __grid_constant__ CudaRows keys,
                           const __grid_constant__ CudaRows values) {
  const int row = blockIdx.x, head = blockIdx.y / 2;
  int index = 0;
  while (layer.items[index].first_row + layer.items[index].num_tokens <= row)
    ++index;
  const CudaItem item = layer.items[index];
  if (item.num_tokens == 1) return;  // StoreAndPack's
  const bool of_keys = blockIdx.y % 2 == 0;
  const CudaRows& from = of_keys ? keys : values;
  const Stream s =
      StreamOf(layer, of_keys ? layer.key : layer.value, index, head, false);
  StoreRow(from, row, head, layer,
           s.chunk + static_cast<int64_t>(row - item.first_row) * s.chunk_row);
}

// appends: takes part in CudaAppend. Items of one token are stored in their
// place, and packed if it is time; longer ones were stored by AppendRows. Else
// packs what is left to pack. grid: workers (appending: 1), (KV head, side),
// items
__global__ void __launch_bounds__(kThreads)
    StoreAndPack(const __grid_constant__ CudaLayer layer,
                 const __grid_constant__ CudaRows keys,
                 const __grid_constant__ CudaRows values, bool appends) {
  const int index = blockIdx.z, head = blockIdx.y / 2;
  const CudaItem item = layer.items[index];
  const bool single = item.num_tokens == 1;
  if (appends && !single) return;
  const bool of_keys = blockIdx.y % 2 == 0;
  const CudaSide& side = of_keys ? layer.key : layer.value;
  const Stream s = StreamOf(layer, side, index, head, false);
  if (appends) {
    const CudaRows& from = of_keys ? keys : values;
    StoreRow(from, item.first_row, head, layer, HomeOf(s, s.end - 1));
    __syncthreads();
  }
  if (appends != (single && layer.flush_before_attention)) return;
  const CudaCounts counts = CountsOf(layer, side, index, head);
  Pack(s, HalfNumbers{s}, counts.packed_before, counts.packed_after);
}

// What of the chunk's buffer stays unquantized goes to its place, unless
// CudaCompact does that.
// grid: tokens of an item, (KV head, side), items
__global__ void MoveRows(const __grid_constant__ CudaLayer layer) {
  const int index = blockIdx.z;
  const CudaItem item = layer.items[index];
  if (item.num_tokens == 1 || static_cast<int>(blockIdx.x) >= item.num_tokens)
    return;
  const CudaSide& side = blockIdx.y % 2 == 0 ? layer.key : layer.value;
  const int head = blockIdx.y / 2;
  if (CountsOf(layer, side, index, head).compacts) return;
  const Stream s = StreamOf(layer, side, index, head, true);
  const int n = s.chunk_begin + blockIdx.x;
  if (n >= s.max_sinks && n - s.max_sinks < s.packed) return;
  const __half* const from = HalfRow(s, n);
  __half* const to = HomeOf(s, n);
  for (int d = threadIdx.x; d < layer.head_dim; d += blockDim.x)
    to[d] = from[d];
}

}  // namespace

cudaError_t CudaAppend(const CudaLayer& layer, const CudaRows& keys,
                       const CudaRows& values, int num_rows, bool any_single,
                       cudaStream_t stream) {
  const unsigned streams = 2 * layer.num_kv_heads;
  if (num_rows > layer.num_items) {
    const cudaError_t error = Launch(AppendRows, dim3(num_rows, streams),
                                     dim3(64), 0, stream, layer, keys, values);
    if (error != cudaSuccess) return error;
  }
  if (!any_single) return cudaSuccess;
  return Launch(StoreAndPack, dim3(1, streams, layer.num_items), dim3(kThreads),
                0, stream, layer, keys, values, true);
}

cudaError_t CudaFinishChunk(const CudaLayer& layer, int max_tokens,
                            cudaStream_t stream) {
  const unsigned streams = 2 * layer.num_kv_heads;
  if (max_tokens > 1 || !layer.flush_before_attention) {
    // A warp for a unit or two of what a chunk of this length can fill.
    const int workers = (max_tokens + 2 * kUnit) / kUnit;
    const cudaError_t error =
        Launch(StoreAndPack, dim3(workers, streams, layer.num_items),
               dim3(kThreads), 0, stream, layer, CudaRows(), CudaRows(), false);
    if (error != cudaSuccess) return error;
  }
  if (max_tokens == 1) return cudaSuccess;
  return Launch(MoveRows, dim3(max_tokens, streams, layer.num_items), dim3(64),
                0, stream, layer);
}

}  // namespace kvmix
