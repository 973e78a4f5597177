// Each kernel moves every number once or twice, so that memory bandwidth is its
// limit. A row belongs to a block (norms, cross-entropy) or a head to a warp;
// what is elementwise strides over the grid.
#include "kvmix/base/cuda.h"
#include "kvmix/base/warp.h"
#include "models/cuda_ops.h"

namespace kvmix {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kMaxBlocks = 4096;  // of kernels that stride

__device__ __forceinline__ float WarpSum(float v) {
  return WarpReduce<16, 8, 4, 2, 1>(v, SumOf());
}

// The reduction of all threads' v, in every thread. The calls of a kernel have
// different numbers, for memory of their own: none waits until others have read
// what it writes over.
template <int kCall, typename Op>
__device__ float BlockReduce(float v, const Op& op) {
  KVMIX_SHARED(float, partial, [kWarps]);
  v = WarpReduce<16, 8, 4, 2, 1>(v, op);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  v = partial[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) v = op(v, partial[w]);
  return v;
}

template <typename T>
__device__ __forceinline__ T Round(float x);
template <>
__device__ __forceinline__ float Round<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half Round<__half>(float x) {
  return __float2half(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 Round<__nv_bfloat16>(float x) {
  return __float2bfloat16(x);
}

__device__ __forceinline__ float Sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

// First element and stride of a thread of an elementwise kernel.
__device__ __forceinline__ int64_t First() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}
__device__ __forceinline__ int64_t Stride() {
  return static_cast<int64_t>(gridDim.x) * kThreads;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    Embed(const T* __restrict__ table, const int32_t* __restrict__ tokens,
          int64_t num_rows, int64_t size, float* __restrict__ hidden) {
  for (int64_t i = First(); i < num_rows * size; i += Stride()) {
    hidden[i] = static_cast<float>(
        table[static_cast<int64_t>(tokens[i / size]) * size + i % size]);
  }
}

// 1 / rms of a row, in every thread.
__device__ float InverseRms(const float* row, int64_t size, float eps) {
  float squares = 0;
  for (int64_t i = threadIdx.x; i < size; i += kThreads)
    squares = fmaf(row[i], row[i], squares);
  return rsqrtf(BlockReduce<0>(squares, SumOf()) / static_cast<float>(size) +
                eps);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    RmsNorm(const float* __restrict__ x, const int32_t* __restrict__ rows,
            const float* __restrict__ weight, float eps, int64_t size,
            T* __restrict__ out) {
  const int64_t from = rows != nullptr ? rows[blockIdx.x] : blockIdx.x;
  const float* row = x + from * size;
  const float inverse = InverseRms(row, size, eps);
  T* to = out + static_cast<int64_t>(blockIdx.x) * size;
  for (int64_t i = threadIdx.x; i < size; i += kThreads)
    to[i] = Round<T>(row[i] * inverse * weight[i]);
}

// With r = 1 / rms: dx = r (g - x r^2 mean(g x)), g = dout weight.
__global__ void __launch_bounds__(kThreads)
    RmsNormGradient(const float* __restrict__ x,
                    const float* __restrict__ weight, float eps,
                    const float* __restrict__ dout, int64_t size,
                    float* __restrict__ dx) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * size;
  const float r = InverseRms(x + first, size, eps);
  float dot = 0;
  for (int64_t i = threadIdx.x; i < size; i += kThreads)
    dot = fmaf(dout[first + i] * weight[i], x[first + i], dot);
  const float slope =
      r * r * BlockReduce<1>(dot, SumOf()) / static_cast<float>(size);
  for (int64_t i = threadIdx.x; i < size; i += kThreads) {
    const int64_t at = first + i;
    dx[at] += r * (dout[at] * weight[i] - x[at] * slope);
  }
}

// A warp's head of a row of queries, keys and values.
struct Head {
  int64_t row;
  int index;  // of H + 2 G
  float* x;
  const float* norm;  // null: none
  bool rotated;
};

__device__ __forceinline__ bool FindHead(const CudaHeads& heads,
                                         int64_t num_rows, float* qkv,
                                         Head& head) {
  const int per_row = heads.num_heads + 2 * heads.num_kv_heads;
  const int64_t number =
      static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (number >= num_rows * per_row) return false;
  head.row = number / per_row;
  head.index = static_cast<int>(number % per_row);
  head.x = qkv + number * heads.head_dim;
  const bool query = head.index < heads.num_heads;
  head.rotated = head.index < heads.num_heads + heads.num_kv_heads;
  head.norm = query          ? heads.query_norm
              : head.rotated ? heads.key_norm
                             : nullptr;
  return true;
}

__global__ void __launch_bounds__(kThreads)
    PrepareHeads(const CudaHeads heads, const int32_t* __restrict__ positions,
                 int64_t num_rows, float* __restrict__ qkv) {
  Head head;
  if (!FindHead(heads, num_rows, qkv, head)) return;
  const int lane = threadIdx.x % 32, half = heads.head_dim / 2;
  float* a = head.x;
  float* b = a + half;
  float squares = 0;
  for (int i = lane; i < half; i += 32) {
    if (heads.bias != nullptr) {
      const float* bias = heads.bias + head.index * heads.head_dim;
      a[i] += bias[i];
      b[i] += bias[half + i];
    }
    squares = fmaf(a[i], a[i], fmaf(b[i], b[i], squares));
  }
  if (!head.rotated) return;
  float inverse = 1;
  if (head.norm != nullptr) {
    inverse = rsqrtf(WarpSum(squares) / static_cast<float>(heads.head_dim) +
                     heads.eps);
  }
  const int64_t angles = static_cast<int64_t>(positions[head.row]) * half;
  for (int i = lane; i < half; i += 32) {
    float u = a[i] * inverse, v = b[i] * inverse;
    if (head.norm != nullptr) {
      u *= head.norm[i];
      v *= head.norm[half + i];
    }
    const float c = heads.cos[angles + i], s = heads.sin[angles + i];
    a[i] = u * c - v * s;
    b[i] = v * c + u * s;
  }
}

__global__ void __launch_bounds__(kThreads)
    PrepareHeadsGradient(const CudaHeads heads,
                         const int32_t* __restrict__ positions,
                         int64_t num_rows, const float* __restrict__ qkv,
                         float* __restrict__ dqkv) {
  Head head;
  if (!FindHead(heads, num_rows, dqkv, head) || !head.rotated) return;
  const int lane = threadIdx.x % 32, half = heads.head_dim / 2;
  float* da = head.x;
  float* db = da + half;
  const float* x = qkv + (da - dqkv);
  const float* bias =
      heads.bias ? heads.bias + head.index * heads.head_dim : nullptr;
  const int64_t angles = static_cast<int64_t>(positions[head.row]) * half;
  float squares = 0, dot = 0;
  for (int i = lane; i < half; i += 32) {
    const float c = heads.cos[angles + i], s = heads.sin[angles + i];
    const float du = da[i] * c + db[i] * s, dv = db[i] * c - da[i] * s;
    da[i] = du;
    db[i] = dv;
    if (head.norm == nullptr) continue;
    const float xa = x[i] + (bias ? bias[i] : 0.0f);
    const float xb = x[half + i] + (bias ? bias[half + i] : 0.0f);
    squares = fmaf(xa, xa, fmaf(xb, xb, squares));
    dot = fmaf(du * head.norm[i], xa, fmaf(dv * head.norm[half + i], xb, dot));
  }
  if (head.norm == nullptr) return;
  const float size = static_cast<float>(heads.head_dim);
  const float r = rsqrtf(WarpSum(squares) / size + heads.eps);
  const float slope = r * r * WarpSum(dot) / size;
  for (int i = lane; i < half; i += 32) {
    const float xa = x[i] + (bias ? bias[i] : 0.0f);
    const float xb = x[half + i] + (bias ? bias[half + i] : 0.0f);
    da[i] = r * (da[i] * head.norm[i] - xa * slope);
    db[i] = r * (db[i] * head.norm[half + i] - xb * slope);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    SwiGlu(const float* __restrict__ gate_up, int64_t num_rows, int64_t inner,
           T* __restrict__ out) {
  for (int64_t i = First(); i < num_rows * inner; i += Stride()) {
    const float* gate = gate_up + i / inner * 2 * inner + i % inner;
    out[i] = Round<T>(gate[0] * Sigmoid(gate[0]) * gate[inner]);
  }
}

__global__ void __launch_bounds__(kThreads)
    SwiGluGradient(const float* gate_up, const float* __restrict__ dout,
                   int64_t num_rows, int64_t inner, float* dgate_up) {
  for (int64_t i = First(); i < num_rows * inner; i += Stride()) {
    const int64_t at = i / inner * 2 * inner + i % inner;
    const float g = gate_up[at], u = gate_up[at + inner], dy = dout[i];
    const float s = Sigmoid(g);
    dgate_up[at] = dy * u * (s * (1.0f + g * (1.0f - s)));
    dgate_up[at + inner] = dy * g * s;
  }
}

__global__ void __launch_bounds__(kThreads)
    CausalSoftmax(int64_t num_tokens, int64_t window, float* __restrict__ x) {
  const int64_t t = blockIdx.x;
  float* row = x + t * num_tokens;
  const int64_t first = window > 0 && t >= window ? t - window + 1 : 0;
  float max = -INFINITY;
  for (int64_t i = first + threadIdx.x; i <= t; i += kThreads)
    max = fmaxf(max, row[i]);
  max = BlockReduce<0>(max, MaxOf());
  float sum = 0;
  for (int64_t i = first + threadIdx.x; i <= t; i += kThreads)
    sum += expf(row[i] - max);
  sum = BlockReduce<1>(sum, SumOf());
  for (int64_t i = threadIdx.x; i < num_tokens; i += kThreads)
    row[i] = i >= first && i <= t ? expf(row[i] - max) / sum : 0.0f;
}

__global__ void __launch_bounds__(kThreads)
    SoftmaxGradient(const float* __restrict__ p, int64_t num_tokens,
                    float scale, float* __restrict__ dp) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * num_tokens;
  float dot = 0;
  for (int64_t i = threadIdx.x; i < num_tokens; i += kThreads)
    dot = fmaf(p[first + i], dp[first + i], dot);
  dot = BlockReduce<0>(dot, SumOf());
  for (int64_t i = threadIdx.x; i < num_tokens; i += kThreads)
    dp[first + i] = scale * p[first + i] * (dp[first + i] - dot);
}

__global__ void __launch_bounds__(kThreads)
    CrossEntropyGradient(float* __restrict__ logits,
                         const int32_t* __restrict__ labels, int64_t size,
                         float gradient_scale, float* __restrict__ loss) {
  float* row = logits + static_cast<int64_t>(blockIdx.x) * size;
  const int32_t label = labels[blockIdx.x];
  const float label_logit = row[label];
  float max = -INFINITY;
  for (int64_t i = threadIdx.x; i < size; i += kThreads)
    max = fmaxf(max, row[i]);
  max = BlockReduce<0>(max, MaxOf());
  float sum = 0;
  for (int64_t i = threadIdx.x; i < size; i += kThreads)
    sum += expf(row[i] - max);
  sum = BlockReduce<1>(sum, SumOf());
  if (threadIdx.x == 0) loss[blockIdx.x] = logf(sum) + max - label_logit;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) {
    const float p = expf(row[i] - max) / sum;
    row[i] = gradient_scale * (i == label ? p - 1.0f : p);
  }
}

dim3 BlocksFor(int64_t threads) {
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  return dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks));
}

dim3 RowBlocks(int64_t num_rows) {
  return dim3(static_cast<unsigned>(num_rows));
}

dim3 HeadBlocks(const CudaHeads& heads, int64_t num_rows) {
  const int64_t warps = num_rows * (heads.num_heads + 2 * heads.num_kv_heads);
  return dim3(static_cast<unsigned>((warps + kWarps - 1) / kWarps));
}

// body(pointer of the type's own kind).
template <typename P, typename Body>
cudaError_t WithType(CudaNumber type, P* p, const Body& body) {
  constexpr bool kConst = std::is_const_v<P>;
  using Half = std::conditional_t<kConst, const __half, __half>;
  using BFloat16 =
      std::conditional_t<kConst, const __nv_bfloat16, __nv_bfloat16>;
  using Float = std::conditional_t<kConst, const float, float>;
  switch (type) {
    case CudaNumber::kHalf:
      return body(static_cast<Half*>(p));
    case CudaNumber::kBFloat16:
      return body(static_cast<BFloat16*>(p));
    case CudaNumber::kFloat:
      return body(static_cast<Float*>(p));
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t CudaEmbed(const void* table, CudaNumber type, const int32_t* tokens,
                      int64_t num_rows, int64_t size, float* hidden,
                      cudaStream_t stream) {
  return WithType(type, table, [&]<typename T>(const T* t) {
    return Launch(Embed<T>, BlocksFor(num_rows * size), kThreads, 0, stream, t,
                  tokens, num_rows, size, hidden);
  });
}

cudaError_t CudaRmsNorm(const float* x, const int32_t* rows,
                        const float* weight, float eps, int64_t num_rows,
                        int64_t size, void* out, CudaNumber type,
                        cudaStream_t stream) {
  return WithType(type, out, [&]<typename T>(T* o) {
    return Launch(RmsNorm<T>, RowBlocks(num_rows), kThreads, 0, stream, x, rows,
                  weight, eps, size, o);
  });
}

cudaError_t CudaRmsNormGradient(const float* x, const float* weight, float eps,
                                const float* dout, int64_t num_rows,
                                int64_t size, float* dx, cudaStream_t stream) {
  return Launch(RmsNormGradient, RowBlocks(num_rows), kThreads, 0, stream, x,
                weight, eps, dout, size, dx);
}

cudaError_t CudaPrepareHeads(const CudaHeads& heads, const int32_t* positions,
                             int64_t num_rows, float* qkv,
                             cudaStream_t stream) {
  return Launch(PrepareHeads, HeadBlocks(heads, num_rows), kThreads, 0, stream,
                heads, positions, num_rows, qkv);
}

cudaError_t CudaPrepareHeadsGradient(const CudaHeads& heads,
                                     const int32_t* positions, int64_t num_rows,
                                     const float* qkv, float* dqkv,
                                     cudaStream_t stream) {
  return Launch(PrepareHeadsGradient, HeadBlocks(heads, num_rows), kThreads, 0,
                stream, heads, positions, num_rows, qkv, dqkv);
}

cudaError_t CudaSwiGlu(const float* gate_up, int64_t num_rows,
                       int64_t inner_size, void* out, CudaNumber type,
                       cudaStream_t stream) {
  return WithType(type, out, [&]<typename T>(T* o) {
    return Launch(SwiGlu<T>, BlocksFor(num_rows * inner_size), kThreads, 0,
                  stream, gate_up, num_rows, inner_size, o);
  });
}

cudaError_t CudaSwiGluGradient(const float* gate_up, const float* dout,
                               int64_t num_rows, int64_t inner_size,
                               float* dgate_up, cudaStream_t stream) {
  return Launch(SwiGluGradient, BlocksFor(num_rows * inner_size), kThreads, 0,
                stream, gate_up, dout, num_rows, inner_size, dgate_up);
}

cudaError_t CudaCausalSoftmax(int64_t num_tokens, int64_t window, float* x,
                              cudaStream_t stream) {
  return Launch(CausalSoftmax, RowBlocks(num_tokens), kThreads, 0, stream,
                num_tokens, window, x);
}

cudaError_t CudaSoftmaxGradient(const float* p, int64_t num_tokens, float scale,
                                float* dp, cudaStream_t stream) {
  return Launch(SoftmaxGradient, RowBlocks(num_tokens), kThreads, 0, stream, p,
                num_tokens, scale, dp);
}

cudaError_t CudaCrossEntropyGradient(float* logits, const int32_t* labels,
                                     int64_t num_rows, int64_t vocab_size,
                                     float gradient_scale, float* loss,
                                     cudaStream_t stream) {
  return Launch(CrossEntropyGradient, RowBlocks(num_rows), kThreads, 0, stream,
                logits, labels, vocab_size, gradient_scale, loss);
}

}  // namespace kvmix
