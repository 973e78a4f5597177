// Built where there is no CUDA toolkit.
#include "kvmix/base/cuda_devices.h"

namespace kvmix {

std::vector<std::string> CudaDevices() { return {}; }
std::string CudaToolkit() { return ""; }

}  // namespace kvmix
