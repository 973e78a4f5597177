// Device functions that nvcc provides and NVIDIA's headers leave out for other
// compilers: barriers, shuffles, votes, atomics, bit casts, fast arithmetic.
// Only what a kernel of ours uses.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kvmix/base/half.h"
#include "tools/cuda_emulator/emulator.h"
#include "tools/cuda_emulator/tensor_cores.h"

// Where a device function was called.
#define EMU_SITE \
  const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace emu {

template <typename To, typename From>
To Bits(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To out;
  std::memcpy(static_cast<void*>(&out), &v, sizeof out);
  return out;
}

}  // namespace emu

// ---- Barriers and fences ----

inline void __syncthreads(EMU_SITE) { emu::SyncThreads(file, line); }
inline void __syncwarp(unsigned mask = ~0u, EMU_SITE) {
  emu::WarpCollective(
      mask, "syncwarp", nullptr, [](void**, unsigned) {}, file, line);
}
inline void __threadfence() { emu::Fence(); }
inline void __trap() { emu::Trap("__trap"); }

// ---- Shuffles and votes ----

namespace emu {

template <typename T>
struct Exchange {
  T value;
  int source;
};

template <typename T>
T Shuffle(unsigned mask, T value, int source, const char* operation,
          const char* file, int line) {
  Exchange<T> mine{value, source};
  WarpCollective(
      mask, operation, &mine,
      [](void** args, unsigned lanes) {
        T values[32];
        for (int i = 0; i < 32; ++i) {
          if (lanes >> i & 1)
            values[i] = static_cast<Exchange<T>*>(args[i])->value;
        }
        for (int i = 0; i < 32; ++i) {
          if (!(lanes >> i & 1)) continue;
          auto& e = *static_cast<Exchange<T>*>(args[i]);
          if (lanes >> e.source & 1) {
            e.value = values[e.source];
          } else {
            Report("shuffle: lane %d reads lane %d, which takes no part", i,
                   e.source);
            std::memset(static_cast<void*>(&e.value), 0xFF, sizeof(T));
          }
        }
      },
      file, line);
  return mine.value;
}

// reduce(lanes whose predicate holds, lanes present)
template <typename R>
R Vote(unsigned mask, int predicate, const char* operation,
       R (*reduce)(unsigned set, unsigned lanes), const char* file, int line) {
  struct Argument {
    int predicate;
    R (*reduce)(unsigned, unsigned);
    R result;
  } mine{predicate, reduce, R()};
  WarpCollective(
      mask, operation, &mine,
      [](void** args, unsigned lanes) {
        unsigned set = 0;
        for (int i = 0; i < 32; ++i) {
          if ((lanes >> i & 1) && static_cast<Argument*>(args[i])->predicate) {
            set |= 1u << i;
          }
        }
        for (int i = 0; i < 32; ++i) {
          if (!(lanes >> i & 1)) continue;
          auto& a = *static_cast<Argument*>(args[i]);
          a.result = a.reduce(set, lanes);
        }
      },
      file, line);
  return mine.result;
}

// kvmix/base/warp.h: as a __shfl_xor_sync of every value for each distance.
template <int... kDistances, int kValues, typename Op>
void Reduce(float (&values)[kValues], const Op& op) {
  struct Argument {
    float* values;
    const Op* op;
  } mine{values, &op};
  WarpCollective(
      ~0u, "reduction", &mine,
      [](void** args, unsigned lanes) {
        if (lanes != ~0u)
          return Report("reduction: lanes %#x take no part", ~lanes);
        const auto lane = [&](int l) {
          return static_cast<Argument*>(args[l]);
        };
        for (int v = 0; v < kValues; ++v) {
          float now[32], next[32];
          for (int l = 0; l < 32; ++l) now[l] = lane(l)->values[v];
          const auto combine = [&](int distance) {
            for (int l = 0; l < 32; ++l)
              next[l] = (*lane(l)->op)(now[l], now[l ^ distance]);
            std::copy(next, next + 32, now);
          };
          (combine(kDistances), ...);
          for (int l = 0; l < 32; ++l) lane(l)->values[v] = now[l];
        }
      },
      __builtin_FILE(), __builtin_LINE());
}

inline int SegmentStart(int lane, int width) { return lane & ~(width - 1); }

}  // namespace emu

template <typename T>
T __shfl_sync(unsigned mask, T v, int source, int width = 32, EMU_SITE) {
  const int lane = emu::LaneId();
  return emu::Shuffle(mask, v,
                      emu::SegmentStart(lane, width) | (source & (width - 1)),
                      "shfl", file, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, EMU_SITE) {
  const int lane = emu::LaneId(), source = lane ^ bits;
  const bool outside = source >= emu::SegmentStart(lane, width) + width;
  return emu::Shuffle(mask, v, outside ? lane : source, "shfl_xor", file, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32,
                   EMU_SITE) {
  const int lane = emu::LaneId(), source = lane + static_cast<int>(delta);
  const bool outside = source >= emu::SegmentStart(lane, width) + width;
  return emu::Shuffle(mask, v, outside ? lane : source, "shfl_down", file,
                      line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_SITE) {
  return emu::Vote<unsigned>(
      mask, predicate, "ballot", [](unsigned set, unsigned) { return set; },
      file, line);
}
inline int __any_sync(unsigned mask, int predicate, EMU_SITE) {
  return emu::Vote<int>(
      mask, predicate, "any",
      [](unsigned set, unsigned) { return static_cast<int>(set != 0); }, file,
      line);
}

// ---- Tensor cores (kvmix/base/ptx.h) ----

namespace emu {

// By the lane that names the row: races are laid at its door.
inline void ReadMatrixRow(const void* row, MatrixRow& to) {
  if (reinterpret_cast<uintptr_t>(row) % 16)
    return Report("ldmatrix: row address not 16-byte aligned");
  const uint4 x = *static_cast<const uint4*>(row);
  std::memcpy(to, &x, sizeof x);
}

inline void MultiplyOnTensorCores(const TensorOperands& operands,
                                  const char* operation) {
  WarpCollective(~0u, operation, const_cast<TensorOperands*>(&operands),
                 Multiply, __builtin_FILE(), __builtin_LINE());
}

}  // namespace emu

// ---- Atomics: plain reads and writes (there is one OS thread), kept out of
// the instrumented code and recorded as atomic ----

#define EMU_UNCHECKED __attribute__((no_sanitize("thread")))

namespace emu {

template <typename T, typename F>
__attribute__((noinline, no_sanitize("thread"))) T ReadModifyWrite(T* p, F f) {
  Record(p, sizeof(T), kAtomic, __builtin_return_address(0));
  const T old = *p;
  *p = f(old);
  return old;
}

}  // namespace emu

template <typename T>
T atomicAdd(T* p, std::common_type_t<T> v) {
  return emu::ReadModifyWrite(
      p, [v](T old) EMU_UNCHECKED { return static_cast<T>(old + v); });
}
template <typename T>
T atomicMax(T* p, std::common_type_t<T> v) {
  return emu::ReadModifyWrite(
      p, [v](T old) EMU_UNCHECKED { return old < v ? v : old; });
}
template <typename T>
T atomicMin(T* p, std::common_type_t<T> v) {
  return emu::ReadModifyWrite(
      p, [v](T old) EMU_UNCHECKED { return v < old ? v : old; });
}
inline unsigned atomicInc(unsigned* p, unsigned limit) {
  return emu::ReadModifyWrite(p, [limit](unsigned old) EMU_UNCHECKED {
    return old >= limit ? 0u : old + 1;
  });
}
// CUDA has none either.
void atomicMax(float*, float) = delete;
void atomicMin(float*, float) = delete;

#undef EMU_UNCHECKED

// ---- Loads through the read-only cache ----

template <typename T>
T __ldg(const T* p) {
  return *p;
}

// ---- Halves: NVIDIA's host versions, to the bit, without their loops over
// bits. What those call among themselves stays theirs ----

namespace emu {

inline float HalfToFloat(__half h) {
  const float x = kvmix::ToFloat(Bits<kvmix::Half>(h));
  return x == x ? x : Bits<float>(0x7fffffffu);
}
// As kvmix::ToHalf, without its branch for subnormal halves, which weights of a
// softmax take at random.
inline __half FloatToHalf(float x) {
  const uint32_t bits = Bits<uint32_t>(x), magnitude = bits & 0x7fffffff;
  const uint32_t sign = bits >> 16 & 0x8000;
  if (__builtin_expect(magnitude >= 0x477ff000, 0)) {  // infinity, NaN
    return Bits<__half>(
        static_cast<uint16_t>(magnitude > 0x7f800000 ? 0x7fff : sign | 0x7c00));
  }
  const uint32_t subnormal =
      Bits<uint32_t>(Bits<float>(magnitude) + 0.5f) - 0x3f000000;
  const uint32_t normal =
      (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  return Bits<__half>(static_cast<uint16_t>(
      sign | (magnitude < 0x38800000 ? subnormal : normal)));
}
inline __half2 FloatsToHalf2(float low, float high) {
  return {FloatToHalf(low), FloatToHalf(high)};
}
inline float2 Half2ToFloats(__half2 x) {
  return make_float2(HalfToFloat(x.x), HalfToFloat(x.y));
}
inline __half2 MultiplyHalf2(__half2 a, __half2 b) {
  const float2 x = Half2ToFloats(a), y = Half2ToFloats(b);
  return FloatsToHalf2(x.x * y.x, x.y * y.y);
}

}  // namespace emu

#define __half2float ::emu::HalfToFloat
#define __float2half ::emu::FloatToHalf
#define __float2half_rn ::emu::FloatToHalf
#define __floats2half2_rn ::emu::FloatsToHalf2
#define __half22float2 ::emu::Half2ToFloats
#define __hmul2 ::emu::MultiplyHalf2

// ---- Scalars ----

namespace emu {

inline float MaxFloat(float a, float b) { return a > b || b != b ? a : b; }
inline float MinFloat(float a, float b) { return a < b || b != b ? a : b; }

}  // namespace emu

// The C library's are calls.
#define fmaxf ::emu::MaxFloat
#define fminf ::emu::MinFloat

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline float __uint_as_float(unsigned v) { return emu::Bits<float>(v); }
inline unsigned __float_as_uint(float v) { return emu::Bits<unsigned>(v); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline int __float2int_rn(float v) {
  return static_cast<int>(std::nearbyint(v));
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned s = selector >> (4 * i);
    uint8_t b = static_cast<uint8_t>(bytes >> (8 * (s & 7)));
    if (s & 8) b = static_cast<int8_t>(b) < 0 ? 0xFF : 0;  // the sign, spread
    out |= static_cast<unsigned>(b) << (8 * i);
  }
  return out;
}
template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
