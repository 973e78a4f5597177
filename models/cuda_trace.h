// TraceLayers of backward.h on a CUDA device.
#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvmix/layer_trace.h"
#include "models/backward.h"
#include "models/cuda_linear.h"
#include "models/cuda_weights.h"
#include "models/model_config.h"

namespace kvmix {

// `weights` are float. Memory: beside one layer's activations of all tokens,
// each layer's input, and two matrices [T, T]: attention takes one head at a
// time.
absl::StatusOr<double> TraceLayersOnCuda(
    const ModelConfig& config, const CudaWeights& weights, CudaLinear& linear,
    cudaStream_t stream, absl::Span<const int32_t> tokens,
    const TraceOptions& options,
    const std::function<absl::Status(const LayerTrace&)>& observe);

}  // namespace kvmix
