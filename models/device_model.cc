#include "models/device_model.h"

#include <utility>

namespace kvmix {
namespace {

DeviceModelLoader& CudaLoader() {
  static DeviceModelLoader loader = nullptr;
  return loader;
}

}  // namespace

bool SetCudaModelLoader(DeviceModelLoader loader) {
  return std::exchange(CudaLoader(), loader) == nullptr;
}

absl::StatusOr<std::unique_ptr<DeviceModel>> LoadCudaModel(
    const ModelConfig& config, const WeightSource& weights,
    const DeviceModelOptions& options, ThreadPool& threads) {
  if (CudaLoader() != nullptr)
    return CudaLoader()(config, weights, options, threads);
  return absl::UnimplementedError(
      "device CUDA: this program was built without CUDA; build kvmix where "
      "$CUDA_PATH or /usr/local/cuda has a toolkit, or choose device CPU");
}

}  // namespace kvmix
