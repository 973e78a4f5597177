#include "kvmix/base/cuda_graph.h"

#include "kvmix/base/device_memory.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {

void CudaGraph::Clear() {
  if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
  exec_ = nullptr;
}

absl::Status CudaGraph::Capture(const std::vector<uint64_t>& key,
                                cudaStream_t stream,
                                absl::FunctionRef<absl::Status()> launch) {
  Clear();
  key_ = key;
  KVMIX_RETURN_IF_ERROR(CudaStatus(
      cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
      "capture of a decode step"));
  absl::Status status = launch();
  cudaGraph_t graph = nullptr;
  status.Update(CudaStatus(cudaStreamEndCapture(stream, &graph),
                           "capture of a decode step"));
  if (status.ok()) {
    status = CudaStatus(cudaGraphInstantiate(&exec_, graph, 0),
                        "graph of a decode step");
  }
  if (graph != nullptr) cudaGraphDestroy(graph);
  return status;
}

absl::Status CudaGraph::Launch(cudaStream_t stream) {
  return CudaStatus(cudaGraphLaunch(exec_, stream), "decode step");
}

}  // namespace kvmix
