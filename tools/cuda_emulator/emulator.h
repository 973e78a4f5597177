// Runs CUDA kernels on the CPU: the blocks of a grid one after another, the
// threads of a block as fibers that run until a barrier or a warp-wide
// operation. Types, fp16 and bf16 arithmetic and the runtime API's declarations
// are NVIDIA's own headers, which plain g++ accepts; what those leave to nvcc
// is in device_functions.h. Kernels include neither: they include
// kvmix/base/cuda.h.
//
// Three variants (tools/cuda.bzl) find different mistakes:
//   fast    results that depend on thread order, divergent barriers, launches
//           that a device would refuse
//   asan    out-of-bounds, misaligned, use of device memory by the host
//   check   races, reads of memory never written, wild addresses, with
//   file:line
// One OS thread at a time may use the emulator.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#undef __launch_bounds__  // NVIDIA's host-only form is a syntax error
#define __launch_bounds__(...)
#undef __shared__  // use KVMIX_SHARED: it adds bounds, poison and a name
#define __shared__ static

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emu {

// ---- Control and results, for tests ----

enum class Order { kAscending, kDescending, kShuffled };

// As they are they make whole programs cheap; tests of kernels change them
// (test_main.cc).
struct Options {
  // Of threads and blocks. Ascending, a warp runs until it waits for another.
  Order order = Order::kAscending;
  uint64_t seed = 1;  // same seed, same order
  // Fills shared memory when a block starts, and memory from cudaMalloc: NaN in
  // every floating-point format, -1 as an integer.
  int poison = 0xFF;
  // Asynchronous work runs only when something waits for it, which shows
  // missing synchronisation.
  bool lazy_streams = false;
  size_t stack_bytes = 64 << 10;  // of a thread; ASan raises it to 256 KiB
  int multiprocessors = 1;
  size_t device_bytes = size_t{4} << 30;  // cudaMalloc beyond this fails
};
Options& options();

// Everything found since the last call, one finding a line; empty when clean.
std::string TakeReports();

// ---- What kernels call, by way of device_functions.h and kvmix/base ----

// The block's variable `key`; allocated at its first use in a launch.
void* SharedVariable(void* key, const char* name, size_t bytes);
void* DynamicShared();
void SyncThreads(const char* file, int line);

// The lanes of `mask` meet; the last to arrive runs fn(arguments of the 32
// lanes, the lanes present); then all go on.
using WarpFn = void (*)(void** arguments, unsigned lanes);
void WarpCollective(unsigned mask, const char* operation, void* argument,
                    WarpFn fn, const char* file, int line);

// A copy happens when it is waited for, never sooner.
void CpAsync(void* shared, const void* global, int bytes);
void CpAsyncCommit();
void CpAsyncWait(int newest_left);

unsigned LaneId();
void Report(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] void Trap(const char* what);

enum Access { kRead, kWrite, kAtomic };
#ifdef EMU_CHECK  // kernels compiled with -fsanitize=thread, hooks in check.cc
void Record(const void* p, size_t bytes, Access access, const void* pc);
void Fence();
#else
inline void Record(const void*, size_t, Access, const void*) {}
inline void Fence() {}
#endif

// ---- Launching ----

// False, with the error set as CUDA sets it, for a launch that a device
// refuses.
bool ValidLaunch(const void* kernel, dim3 grid, dim3 block, size_t smem);
// Runs `work` now, or when waited for (lazy_streams), or puts it into the graph
// that `stream` is being captured into.
void Enqueue(cudaStream_t stream, std::function<void()> work);
void RunGrid(const void* kernel, dim3 grid, dim3 block, size_t smem,
             void (*body)(void*), void* argument, size_t argument_bytes);

template <typename... P, typename... A>
void Launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem,
            cudaStream_t stream, A&&... args) {
  const void* key = reinterpret_cast<const void*>(kernel);
  if (!ValidLaunch(key, grid, block, smem)) return;
  // Arguments are copied now, as a launch copies them; every thread gets its
  // own copy again by the call.
  using Bound = std::pair<void (*)(P...), std::tuple<std::decay_t<P>...>>;
  Enqueue(stream,
          [=, bound = Bound(kernel, {std::forward<A>(args)...})]() mutable {
            RunGrid(
                key, grid, block, smem,
                [](void* b) {
                  std::apply(static_cast<Bound*>(b)->first,
                             static_cast<Bound*>(b)->second);
                },
                &bound, sizeof bound);
          });
}

}  // namespace emu

// The typed overload that cuda_runtime.h gives nvcc only.
template <typename... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...),
                                 cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute,
                              value);
}
