// Built where there is no CUDA toolkit.
#include "models/device_model.h"

namespace kvmix {

absl::StatusOr<std::unique_ptr<DeviceModel>> LoadCudaModel(
    const ModelConfig&, const WeightSource&, const DeviceModelOptions&,
    ThreadPool&) {
  return absl::UnimplementedError(
      "device CUDA: this program was built without a CUDA toolkit; build it "
      "where $CUDA_PATH or /usr/local/cuda has one, or choose device CPU");
}

}  // namespace kvmix
