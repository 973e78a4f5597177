// Prints the speed of attention on the CUDA device, as tables in Markdown.
#include <cstdio>
#include <iostream>

#include "attention/cuda_attention_benchmark.h"

int main() {
  const absl::Status status = kvmix::RunCudaAttentionBenchmark(
      kvmix::CudaBenchmarkOptions(), std::cout);
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return 1;
}
