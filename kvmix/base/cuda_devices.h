// The CUDA devices of this machine, by name: "NVIDIA H100 80GB HBM3, 79 GiB,
// sm_90". Empty without a device or driver. CudaToolkit() is the toolkit that
// this binary was built with ("13.0"), or "" if it was built without one.
#pragma once

#include <string>
#include <vector>

namespace kvmix {

std::vector<std::string> CudaDevices();
std::string CudaToolkit();

}  // namespace kvmix
