// Device functions that nvcc provides and NVIDIA's headers leave out for other
// compilers: barriers, shuffles, votes, atomics, bit casts, fast arithmetic.
// Only what a kernel of ours uses.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tools/cuda_emulator/emulator.h"

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

// ---- Scalars ----

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
