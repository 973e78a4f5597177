#include "kvmix/base/cuda_devices.h"

#include <cuda_runtime.h>

namespace kvmix {

std::vector<std::string> CudaDevices() {
  std::vector<std::string> devices;
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return devices;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp device;
    if (cudaGetDeviceProperties(&device, i) != cudaSuccess) continue;
    devices.push_back(std::string(device.name) + ", " +
                      std::to_string(device.totalGlobalMem >> 30) +
                      " GiB, sm_" + std::to_string(device.major) +
                      std::to_string(device.minor));
  }
  return devices;
}

std::string CudaToolkit() {
  return std::to_string(CUDART_VERSION / 1000) + "." +
         std::to_string(CUDART_VERSION % 1000 / 10);
}

}  // namespace kvmix
