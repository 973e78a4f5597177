// Inline PTX and, for the emulator, its meaning. Nothing else in the project
// contains asm.
#pragma once
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
  struct Arg {
    const unsigned *a, *b;
    const float* c;
    float d[4];
  } mine{a, b, c, {}};
  ::emu::WarpCollective(
      ~0u, "mma.m16n8k16", &mine,
      [](void** args, unsigned) {
        float A[16][16], B[16][8];
        auto lo = [](unsigned v) {
          return __half2float(
              ::emu::Bits<__half>(static_cast<unsigned short>(v)));
        };
        auto hi = [](unsigned v) {
          return __half2float(
              ::emu::Bits<__half>(static_cast<unsigned short>(v >> 16)));
        };
        for (int lane = 0; lane < 32; ++lane) {
          auto& x = *static_cast<Arg*>(args[lane]);
          const int g = lane / 4, t = lane % 4 * 2;
          for (int i = 0; i < 4; ++i) {
            const int r = g + i % 2 * 8, k = t + i / 2 * 8;
            A[r][k] = lo(x.a[i]);
            A[r][k + 1] = hi(x.a[i]);
          }
          for (int i = 0; i < 2; ++i) {
            const int k = t + i * 8;
            B[k][g] = lo(x.b[i]);
            B[k + 1][g] = hi(x.b[i]);
          }
        }
        for (int lane = 0; lane < 32; ++lane) {
          auto& x = *static_cast<Arg*>(args[lane]);
          for (int i = 0; i < 4; ++i) {
            const int r = lane / 4 + i / 2 * 8, n = lane % 4 * 2 + i % 2;
            // The hardware's order and rounding of the sum are unspecified:
            // compare with a tolerance.
            double sum = x.c[i];
            for (int k = 0; k < 16; ++k) sum += double(A[r][k]) * B[k][n];
            x.d[i] = float(sum);
          }
        }
      },
      __builtin_FILE(), __builtin_LINE());
  for (int i = 0; i < 4; ++i) d[i] = mine.d[i];
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
  if (reinterpret_cast<uintptr_t>(row) % 16)
    ::emu::Report("ldmatrix: row address not 16-byte aligned");
  struct Arg {
    unsigned short row[8];
    unsigned r[4];
  } mine;
  // Read by the lane that names it: races are laid at its door.
  for (int i = 0; i < 8; ++i)
    mine.row[i] = static_cast<const unsigned short*>(row)[i];
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
