// Stand-in for the part of the CUDA runtime that the project uses, on host
// memory. It defines the C symbols that NVIDIA's headers declare, so a program
// links either with it or with the real library.
//
// A stream runs work at once, in the order of the calls; with lazy_streams, as
// late as the program allows; while captured, it keeps the work for a graph.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "tools/cuda_emulator/emulator.h"
#include "tools/cuda_emulator/internal.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace {

using Work = std::function<void()>;

struct Graph {
  std::vector<Work> nodes;  // in the order of capture
};

struct Stream {
  std::deque<Work> queue;
  uint64_t issued = 0, done = 0;
  Graph* capturing = nullptr;
};

struct Event {
  Stream* stream = nullptr;  // null until recorded
  uint64_t position = 0;
  std::chrono::steady_clock::time_point time;
};

Stream default_stream;
std::set<Stream*> streams;  // all others

Stream* Of(cudaStream_t s) {
  return s ? reinterpret_cast<Stream*>(s) : &default_stream;
}

void RunUntil(Stream* s, uint64_t position) {
  while (s->done < position && !s->queue.empty()) {
    const Work work = std::move(s->queue.front());
    s->queue.pop_front();
    ++s->done;
    work();
  }
}

void RunAll() {
  for (Stream* s : streams) RunUntil(s, s->issued);
  RunUntil(&default_stream, default_stream.issued);
}

std::map<char*, size_t> allocations, pinned;
size_t allocated = 0;
cudaError_t last_error = cudaSuccess;

cudaError_t Return(cudaError_t e) {
  if (e != cudaSuccess) last_error = e;
  return e;
}

bool Capturing() {
  return default_stream.capturing ||
         std::any_of(streams.begin(), streams.end(),
                     [](Stream* s) { return s->capturing != nullptr; });
}

// What waits for the device, or allocates, may not be called during a capture.
cudaError_t RefuseWhileCapturing() {
  return Capturing() ? Return(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

// Whether p lies in one of `blocks`, with all its bytes.
struct Place {
  bool inside = false, whole = true;
};
Place Find(const void* p, size_t bytes,
           const std::map<char*, size_t>& blocks = allocations) {
  const char* at = static_cast<const char*>(p);
  auto it = blocks.upper_bound(const_cast<char*>(at));
  if (it == blocks.begin()) return {};
  --it;
  if (at >= it->first + it->second) return {};
  return {true, at + bytes <= it->first + it->second};
}

cudaError_t Copy(void* to, const void* from, size_t bytes,
                 cudaMemcpyKind kind) {
  const Place target = Find(to, bytes), source = Find(from, bytes);
  if (!target.whole || !source.whole) return Return(cudaErrorInvalidValue);
  const bool to_device =
      kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device =
      kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (kind != cudaMemcpyDefault &&
      (to_device != target.inside || from_device != source.inside)) {
    return Return(cudaErrorInvalidValue);
  }
  emu::DeviceMemoryAccessible(true);
  std::memmove(to, from, bytes);
  if (target.inside) emu::MarkWritten(to, bytes);
  emu::DeviceMemoryAccessible(false);
  return cudaSuccess;
}

cudaError_t Set(void* p, int value, size_t bytes) {
  const Place place = Find(p, bytes);
  if (!place.inside || !place.whole) return Return(cudaErrorInvalidValue);
  emu::DeviceMemoryAccessible(true);
  std::memset(p, value, bytes);
  emu::MarkWritten(p, bytes);
  emu::DeviceMemoryAccessible(false);
  return cudaSuccess;
}

}  // namespace

namespace emu {

void Enqueue(cudaStream_t stream, Work work) {
  Stream* s = Of(stream);
  if (s->capturing) {
    s->capturing->nodes.push_back(std::move(work));
    return;
  }
  if (!options().lazy_streams) return work();
  ++s->issued;
  if (s != &default_stream) {  // follows what the default stream holds now
    s->queue.push_back(
        [work = std::move(work), before = default_stream.issued] {
          RunUntil(&default_stream, before);
          work();
        });
    return;
  }
  // What goes to the default stream follows all others.
  std::map<Stream*, uint64_t> before;
  for (Stream* other : streams) before[other] = other->issued;
  s->queue.push_back([work = std::move(work), before = std::move(before)] {
    for (const auto& [other, position] : before) {
      if (streams.count(other)) RunUntil(other, position);
    }
    work();
  });
}

void SetLastError(cudaError_t e) { last_error = e; }

void DeviceMemoryAccessible([[maybe_unused]] bool yes) {
#ifdef __SANITIZE_ADDRESS__
  for (const auto& [p, bytes] : allocations) {
    if (yes) {
      __asan_unpoison_memory_region(p, bytes);
    } else {
      __asan_poison_memory_region(p, bytes);
    }
  }
#endif
}

}  // namespace emu

extern "C" {

// ---- Memory ----

cudaError_t cudaMalloc(void** p, size_t bytes) {
  if (const cudaError_t e = RefuseWhileCapturing()) return e;
  *p = nullptr;
  if (allocated + bytes > emu::options().device_bytes) {
    return Return(cudaErrorMemoryAllocation);
  }
  char* m = static_cast<char*>(emu::Allocate(256, bytes));
  if (!m) return Return(cudaErrorMemoryAllocation);
  std::memset(m, emu::options().poison, bytes);
  allocations[m] = bytes;
  allocated += bytes;
  emu::AddRegion(m, bytes, "device memory", false);
  emu::DeviceMemoryAccessible(false);
  *p = m;
  return cudaSuccess;
}

cudaError_t cudaFree(void* p) {
  if (!p) return cudaSuccess;
  if (const cudaError_t e = RefuseWhileCapturing()) return e;
  RunAll();  // it waits for the device
  auto it = allocations.find(static_cast<char*>(p));
  if (it == allocations.end()) return Return(cudaErrorInvalidValue);
  emu::DeviceMemoryAccessible(true);
  allocated -= it->second;
  allocations.erase(it);
  emu::RemoveRegion(p);
  std::free(p);
  emu::DeviceMemoryAccessible(false);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = emu::options().device_bytes;
  *free = *total - allocated;
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** p, size_t bytes) {
  *p = emu::Allocate(256, bytes);
  if (!*p) return Return(cudaErrorMemoryAllocation);
  pinned[static_cast<char*>(*p)] = bytes;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* p) {
  RunAll();
  pinned.erase(static_cast<char*>(p));
  std::free(p);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes,
                       cudaMemcpyKind kind) {
  if (const cudaError_t e = RefuseWhileCapturing()) return e;
  RunAll();
  return Copy(to, from, bytes, kind);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes,
                            cudaMemcpyKind kind, cudaStream_t stream) {
  if (kind == cudaMemcpyHostToDevice && !Find(from, bytes, pinned).inside) {
    // A pageable source is read before the call returns.
    emu::Enqueue(
        stream,
        [to, staged = std::string(static_cast<const char*>(from), bytes),
         kind] { Copy(to, staged.data(), staged.size(), kind); });
  } else {
    emu::Enqueue(stream, [=] { Copy(to, from, bytes, kind); });
  }
  return last_error;
}

cudaError_t cudaMemset(void* p, int value, size_t bytes) {
  if (const cudaError_t e = RefuseWhileCapturing()) return e;
  RunAll();
  return Set(p, value, bytes);
}

cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t s) {
  emu::Enqueue(s, [=] { Set(p, value, bytes); });
  return last_error;
}

// ---- Streams and events ----

cudaError_t cudaStreamCreate(cudaStream_t* s) {
  auto* stream = new Stream;
  streams.insert(stream);
  *s = reinterpret_cast<cudaStream_t>(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  if (const cudaError_t e = RefuseWhileCapturing()) return e;
  RunUntil(Of(s), Of(s)->issued);
  return last_error;
}

cudaError_t cudaStreamDestroy(cudaStream_t s) {
  RunUntil(Of(s), Of(s)->issued);
  streams.erase(Of(s));
  delete Of(s);
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  if (const cudaError_t e = RefuseWhileCapturing()) return e;
  RunAll();
  return last_error;
}

cudaError_t cudaEventCreate(cudaEvent_t* e) {
  *e = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t e) {
  delete reinterpret_cast<Event*>(e);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  auto* event = reinterpret_cast<Event*>(e);
  emu::Enqueue(s, [event] { event->time = std::chrono::steady_clock::now(); });
  event->stream = Of(s);
  event->position = Of(s)->issued;
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  auto* event = reinterpret_cast<Event*>(e);
  if (event->stream) RunUntil(event->stream, event->position);
  return last_error;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
  const Event event = *reinterpret_cast<Event*>(e);
  if (event.stream) {
    emu::Enqueue(s, [event] { RunUntil(event.stream, event.position); });
  }
  return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) {
  *ms =
      std::chrono::duration<float, std::milli>(
          reinterpret_cast<Event*>(b)->time - reinterpret_cast<Event*>(a)->time)
          .count();
  return cudaSuccess;
}

// ---- Graphs: the captured work, run again in order ----

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
  // The default stream cannot be captured.
  if (!s) return Return(cudaErrorStreamCaptureUnsupported);
  if (Of(s)->capturing) return Return(cudaErrorIllegalState);
  Of(s)->capturing = new Graph;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
  Graph* captured = std::exchange(Of(s)->capturing, nullptr);
  *graph = reinterpret_cast<cudaGraph_t>(captured);
  return captured ? cudaSuccess : Return(cudaErrorIllegalState);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                 unsigned long long) {
  *exec = reinterpret_cast<cudaGraphExec_t>(
      new Graph(*reinterpret_cast<Graph*>(graph)));
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
  for (const Work& node : reinterpret_cast<Graph*>(exec)->nodes) {
    emu::Enqueue(s, node);
  }
  return last_error;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Graph*>(graph);
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete reinterpret_cast<Graph*>(exec);
  return cudaSuccess;
}

// ---- Errors and the device ----

cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}

const char* cudaGetErrorString(cudaError_t e) {
  switch (e) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    default:
      return "unrecognized error code";
  }
}

cudaError_t cudaGetDeviceCount(int* n) {
  *n = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  *p = cudaDeviceProp{};
  std::strcpy(p->name, "CUDA emulator");
  p->major = 8;
  p->multiProcessorCount = emu::options().multiprocessors;
  p->totalGlobalMem = emu::options().device_bytes;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute,
                                   int device) {
  cudaDeviceProp p;
  cudaGetDeviceProperties(&p, device);
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = p.major;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = p.multiProcessorCount;
      return cudaSuccess;
    default:
      return Return(cudaErrorInvalidValue);
  }
}

cudaError_t cudaFuncSetAttribute(const void* kernel,
                                 cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value > 163 << 10) return Return(cudaErrorInvalidValue);
    emu::SetDynamicLimit(kernel, value);
  }
  return cudaSuccess;
}

}  // extern "C"
