// Inline PTX and, for the emulator, its meaning. Nothing else in the project
// contains asm.
#pragma once
#include <type_traits>

#include "kvmix/base/cuda.h"

namespace kvmix::ptx {

// A pointer read from memory, which the compiler cannot know to point to global
// memory.
template <typename T>
__device__ __forceinline__ T* Global(T* p) {
#ifdef __CUDA_ARCH__
  __builtin_assume(__isGlobal(p));
#endif
  return p;
}

// d = a * b + c for one warp; A is 16x16 fp16 row-major, B 16x8 fp16
// column-major, C and D 16x8 fp32 (PTX ISA, mma.m16n8k16, fragment figures).
__device__ __forceinline__ void MmaM16N8K16(float (&d)[4],
                                            const unsigned (&a)[4],
                                            const unsigned (&b)[2],
                                            const float (&c)[4]) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]),
        "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#elif !defined(__CUDACC__)
  float sum[1][4] = {{c[0], c[1], c[2], c[3]}};
  const ::emu::TensorOperands mine{.a = &a, .b = &b, .d = sum};
  ::emu::MultiplyOnTensorCores(mine, "mma.m16n8k16");
  for (int i = 0; i < 4; ++i) d[i] = sum[0][i];
#endif
}

// Four 8x8 matrices of 16-bit elements from shared memory; lane l gives the
// address of row l%8 of matrix l/8 (16 bytes, 16-byte aligned).
template <bool kTransposed = false>
__device__ __forceinline__ void LdMatrixX4(unsigned (&r)[4], const void* row) {
#ifdef __CUDA_ARCH__
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed)
    asm volatile(
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
        : "r"(address)
        : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
#elif !defined(__CUDACC__)
  struct Arg {
    ::emu::MatrixRow row;
    unsigned r[4];
  } mine;
  ::emu::ReadMatrixRow(row, mine.row);
  ::emu::WarpCollective(
      ~0u, "ldmatrix", &mine,
      [](void** args, unsigned) {
        auto at = [&](int m, int i, int j) {
          return unsigned(static_cast<Arg*>(args[m * 8 + i])->row[j]);
        };
        for (int lane = 0; lane < 32; ++lane)
          for (int m = 0; m < 4; ++m) {
            const int i = lane / 4, j = lane % 4 * 2;
            static_cast<Arg*>(args[lane])->r[m] =
                kTransposed ? at(m, j, i) | at(m, j + 1, i) << 16
                            : at(m, i, j) | at(m, i, j + 1) << 16;
          }
      },
      __builtin_FILE(), __builtin_LINE());
  for (int i = 0; i < 4; ++i) r[i] = mine.r[i];
#endif
}

struct Fragment {
  unsigned x[4];
};

// d[n] += sum over steps s of A[s] B[s][n], as MmaM16N8K16 of operands that
// LdMatrixX4 reads: b_row(s, n / 2) is the address that this lane gives for
// columns n and n + 1 of B, a_of(s) that for A, or A's Fragment itself. On the
// emulator one operation of the warp, which is far cheaper; only its variant
// "check" executes what the device does.
template <bool kTransposed, int kSteps, int kPairs, int kUnroll, typename A,
          typename B>
__device__ __forceinline__ void MmaOfRows(float (&d)[2 * kPairs][4],
                                          const A& a_of, const B& b_row) {
  constexpr bool kRowsOfA = std::is_pointer_v<std::invoke_result_t<A, int>>;
#if defined(__CUDA_ARCH__) || defined(EMU_CHECK)
#pragma unroll kUnroll
  for (int s = 0; s < kSteps; ++s) {
    Fragment a;
    if constexpr (kRowsOfA) {
      LdMatrixX4(a.x, a_of(s));
    } else {
      a = a_of(s);
    }
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      unsigned b[4];
      LdMatrixX4<kTransposed>(b, b_row(s, p));
      const unsigned low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
      MmaM16N8K16(d[2 * p], a.x, low, d[2 * p]);
      MmaM16N8K16(d[2 * p + 1], a.x, high, d[2 * p + 1]);
    }
  }
#elif !defined(__CUDACC__)
  Fragment a[kSteps];
  ::emu::MatrixRow a_rows[kSteps], b_rows[kSteps * kPairs];
  for (int s = 0; s < kSteps; ++s) {
    if constexpr (kRowsOfA) {
      ::emu::ReadMatrixRow(a_of(s), a_rows[s]);
    } else {
      a[s] = a_of(s);
    }
    for (int p = 0; p < kPairs; ++p)
      ::emu::ReadMatrixRow(b_row(s, p), b_rows[s * kPairs + p]);
  }
  const ::emu::TensorOperands mine{.steps = kSteps,
                                   .products = 2 * kPairs,
                                   .a = kRowsOfA ? nullptr : &a[0].x,
                                   .a_rows = kRowsOfA ? a_rows : nullptr,
                                   .b_rows = b_rows,
                                   .b_transposed = kTransposed,
                                   .d = d};
  ::emu::MultiplyOnTensorCores(mine, "ldmatrix, mma.m16n8k16");
#endif
}

// An 8x8 matrix of 16-bit elements, transposed within the warp: lane l holds
// elements 2(l%4) and 2(l%4) + 1 of row l/4.
__device__ __forceinline__ unsigned MovMatrix(unsigned v) {
#ifdef __CUDA_ARCH__
  unsigned d;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0,%1;"
               : "=r"(d)
               : "r"(v));
  return d;
#elif !defined(__CUDACC__)
  struct Arg {
    unsigned in, out;
  } mine{v, 0};
  ::emu::WarpCollective(
      ~0u, "movmatrix", &mine,
      [](void** args, unsigned) {
        auto at = [&](int row, int column) {
          const unsigned pair =
              static_cast<Arg*>(args[row * 4 + column / 2])->in;
          return pair >> (16 * (column % 2)) & 0xffff;
        };
        for (int lane = 0; lane < 32; ++lane) {
          const int i = lane / 4, j = lane % 4 * 2;
          static_cast<Arg*>(args[lane])->out = at(j, i) | at(j + 1, i) << 16;
        }
      },
      __builtin_FILE(), __builtin_LINE());
  return mine.out;
#else
  return v;  // nvcc's host pass
#endif
}

// Copies 16 bytes from global to shared memory, some time before the matching
// CpAsyncWait returns (the emulator: exactly then).
__device__ __forceinline__ void CpAsync16(void* shared, const void* global) {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.cg.shared.global [%0],[%1],16;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
#elif !defined(__CUDACC__)
  ::emu::CpAsync(shared, global, 16);
#endif
}
__device__ __forceinline__ void CpAsyncCommit() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.commit_group;" ::: "memory");
#elif !defined(__CUDACC__)
  ::emu::CpAsyncCommit();
#endif
}
template <int kNewestLeft>
__device__ __forceinline__ void CpAsyncWait() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewestLeft) : "memory");
#elif !defined(__CUDACC__)
  ::emu::CpAsyncWait(kNewestLeft);
#endif
}

}  // namespace kvmix::ptx
