// Reductions over the 32 lanes of a warp. Device code alone; included by .cu
// files.
#pragma once
#include "kvmix/base/cuda.h"

namespace kvmix {

struct SumOf {
  __device__ __forceinline__ float operator()(float a, float b) const {
    return a + b;
  }
};
struct MaxOf {
  __device__ __forceinline__ float operator()(float a, float b) const {
    return fmaxf(a, b);
  }
};
struct MinOf {
  __device__ __forceinline__ float operator()(float a, float b) const {
    return fminf(a, b);
  }
};

// Every v becomes op(v, v of lane ^ d), for every d of kDistances in turn; all
// lanes take part. With 1, 2, 4, 8, 16 in any order, v is reduced over the
// warp. On the emulator one operation of the warp, which is far cheaper than a
// shuffle for each value and distance; only its variant "check" executes what
// the device does.
template <int... kDistances, int kValues, typename Op>
__device__ __forceinline__ void WarpReduceEach(float (&values)[kValues],
                                               const Op& op) {
#if defined(__CUDACC__) || defined(EMU_CHECK)
  const auto combine = [&](int distance) {
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      values[i] =
          op(values[i], __shfl_xor_sync(0xffffffffu, values[i], distance));
  };
  (combine(kDistances), ...);
#else
  ::emu::Reduce<kDistances...>(values, op);
#endif
}

template <int... kDistances, typename Op>
__device__ __forceinline__ float WarpReduce(float v, const Op& op) {
  float values[1] = {v};
  WarpReduceEach<kDistances...>(values, op);
  return values[0];
}

}  // namespace kvmix
