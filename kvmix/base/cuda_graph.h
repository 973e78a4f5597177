// Launches captured once and replayed as long as a key says that they would be
// the same again.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace kvmix {

class CudaGraph {
 public:
  CudaGraph() = default;
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  ~CudaGraph() { Clear(); }

  void Clear();
  // Whether there are launches, and they were captured under this key.
  bool Serves(const std::vector<uint64_t>& key) const {
    return exec_ != nullptr && key == key_;
  }
  // Captures what `launch` launches on `stream`, which does not run yet.
  // Errors: those of `launch`, and CUDA's.
  absl::Status Capture(const std::vector<uint64_t>& key, cudaStream_t stream,
                       absl::FunctionRef<absl::Status()> launch);
  absl::Status Launch(cudaStream_t stream);

 private:
  cudaGraphExec_t exec_ = nullptr;
  std::vector<uint64_t> key_;
};

}  // namespace kvmix
