// Kernels with one mistake each, and their mended twins.
#pragma once

#include <cuda_runtime_api.h>

namespace kvmix {

// device: 200 floats. n: 200, or 100 for EarlyExit.
cudaError_t RunPlantedBug(const char* name, bool fixed, float* device, int n);

}  // namespace kvmix
