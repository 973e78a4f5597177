// The operations of a transformer layer on a CUDA device, besides matrix
// products and attention, and their gradients: those of ops.h, on rows that lie
// in device memory. Sums are taken in float.
//
// Every function launches on `stream` and returns what the launch says. R =
// rows, C = hidden size, H = query heads, G = KV heads, D = head_dim (even), I
// = intermediate size, V = vocabulary. Arrays are row-major without gaps.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "attention/cuda_attention_params.h"

namespace kvmix {

// hidden [R, C] = table [V, C] rows `tokens` [R].
cudaError_t CudaEmbed(const void* table, CudaNumber type, const int32_t* tokens,
                      int64_t num_rows, int64_t size, float* hidden,
                      cudaStream_t stream);

// out [R, size] = RMSNorm of x's rows `rows` [R]; null: rows 0 .. R - 1.
cudaError_t CudaRmsNorm(const float* x, const int32_t* rows,
                        const float* weight, float eps, int64_t num_rows,
                        int64_t size, void* out, CudaNumber type,
                        cudaStream_t stream);

// dx += (d out / d x)^T dout, both [R, size].
cudaError_t CudaRmsNormGradient(const float* x, const float* weight, float eps,
                                const float* dout, int64_t num_rows,
                                int64_t size, float* dx, cudaStream_t stream);

// What happens to the heads between their projection and attention.
struct CudaHeads {
  int num_heads = 0;     // H
  int num_kv_heads = 0;  // G
  int head_dim = 0;      // D
  float eps = 0;
  const float* bias = nullptr;        // [(H + 2 G) D], or null
  const float* query_norm = nullptr;  // [D], or null
  const float* key_norm = nullptr;    // [D], or null
  const float* cos = nullptr;         // [positions, D / 2]
  const float* sin = nullptr;
};

// qkv [R, (H + 2 G) D] in place: bias added, queries and keys normed, then
// rotated by their `positions` [R].
cudaError_t CudaPrepareHeads(const CudaHeads& heads, const int32_t* positions,
                             int64_t num_rows, float* qkv, cudaStream_t stream);

// Gradient of that: dqkv in place, of prepared heads, becomes that of `qkv` as
// projected, without bias.
cudaError_t CudaPrepareHeadsGradient(const CudaHeads& heads,
                                     const int32_t* positions, int64_t num_rows,
                                     const float* qkv, float* dqkv,
                                     cudaStream_t stream);

// out [R, I] = silu(gate) * up of gate_up [R, 2 I].
cudaError_t CudaSwiGlu(const float* gate_up, int64_t num_rows,
                       int64_t inner_size, void* out, CudaNumber type,
                       cudaStream_t stream);
// dgate_up [R, 2 I] of dout [R, I]; dgate_up may be gate_up.
cudaError_t CudaSwiGluGradient(const float* gate_up, const float* dout,
                               int64_t num_rows, int64_t inner_size,
                               float* dgate_up, cudaStream_t stream);

// Row t of x [T, T] becomes its softmax over what token t sees: tokens up to t,
// at most `window` of them if that is not 0; the others get 0.
cudaError_t CudaCausalSoftmax(int64_t num_tokens, int64_t window, float* x,
                              cudaStream_t stream);
// dp [T, T] becomes the gradient of the scores, scale p (dp - sum(p dp)), of
// softmax(scale * scores) = p.
cudaError_t CudaSoftmaxGradient(const float* p, int64_t num_tokens, float scale,
                                float* dp, cudaStream_t stream);

// loss [R] = log(sum(exp(logits))) - logits[label], in nats; `logits` [R, V]
// becomes its gradient times `gradient_scale`.
cudaError_t CudaCrossEntropyGradient(float* logits, const int32_t* labels,
                                     int64_t num_rows, int64_t vocab_size,
                                     float gradient_scale, float* loss,
                                     cudaStream_t stream);

}  // namespace kvmix
