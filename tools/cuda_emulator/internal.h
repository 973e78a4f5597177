// Between the scheduler, the stand-ins for the CUDA runtime and cuBLAS, and the
// access checker.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace emu {

void SetLastError(cudaError_t error);
size_t DynamicLimit(const void* kernel);
void SetDynamicLimit(const void* kernel, size_t bytes);
// ASan: device memory is poisoned except while a launch or a copy runs.
void DeviceMemoryAccessible(bool yes);
int CurrentThread();  // in its block; -1 outside kernels
unsigned CurrentWarpEpoch();
// Whether p is in the running thread's stack or the kernel's arguments.
bool IsThreadLocal(const void* p);
void* Allocate(size_t alignment, size_t bytes);  // nullptr when out of memory

// Access checker; nothing happens in variants without it.
void AddRegion(void* data, size_t bytes, const char* name, bool shared);
void RemoveRegion(void* data);
void MarkWritten(void* data, size_t bytes);
void NextEpoch();
void BeginBlock();
void BeginGrid();

}  // namespace emu
