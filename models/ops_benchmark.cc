// The operations of a layer on one row: bytes_per_second counts the rows read
// and written. 576 and 1536 are SmolLM2-135M's hidden and inner sizes, 49152
// its vocabulary.
#include <vector>

#include "benchmark/benchmark.h"
#include "models/ops.h"

namespace kvmix {
namespace {

// `op` works on `rows` rows of state.range(0) elements.
template <class Op>
void Run(benchmark::State& state, int rows, const Op& op) {
  const int64_t size = state.range(0);
  std::vector<std::vector<float>> x(5, std::vector<float>(size, 0.5f));
  for (auto _ : state) {
    op(x, size);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * size * rows *
                          static_cast<int64_t>(sizeof(float)));
}

using Rows = std::vector<std::vector<float>>;

void RmsNormRow(benchmark::State& state) {
  Run(state, 3, [](Rows& x, int64_t size) {
    RmsNorm(x[0].data(), x[1].data(), 1e-5f, size, x[2].data());
  });
}
BENCHMARK(RmsNormRow)->Arg(64)->Arg(576);

void RmsNormGradientRow(benchmark::State& state) {
  Run(state, 4, [](Rows& x, int64_t size) {
    RmsNormGradient(x[0].data(), x[1].data(), 1e-5f, x[2].data(), size,
                    x[3].data());
  });
}
BENCHMARK(RmsNormGradientRow)->Arg(576);

void RotateHead(benchmark::State& state) {
  Run(state, 2, [](Rows& x, int64_t size) {
    Rotate(x[0].data(), static_cast<int>(size), x[1].data(), x[2].data());
  });
}
BENCHMARK(RotateHead)->Arg(64)->Arg(128);

void SwiGluRow(benchmark::State& state) {
  Run(state, 3, [](Rows& x, int64_t size) {
    SwiGlu(x[0].data(), x[1].data(), size, x[2].data());
  });
}
BENCHMARK(SwiGluRow)->Arg(1536);

void SwiGluGradientRow(benchmark::State& state) {
  Run(state, 5, [](Rows& x, int64_t size) {
    SwiGluGradient(x[0].data(), x[1].data(), x[2].data(), size, x[3].data(),
                   x[4].data());
  });
}
BENCHMARK(SwiGluGradientRow)->Arg(1536);

void SoftmaxRow(benchmark::State& state) {
  Run(state, 2, [](Rows& x, int64_t size) { Softmax(x[0].data(), size, 1); });
}
BENCHMARK(SoftmaxRow)->Arg(1024);

void CrossEntropyRow(benchmark::State& state) {
  Run(state, 2, [](Rows& x, int64_t size) {
    CrossEntropyGradient(x[0].data(), size, 7, 1);
  });
}
BENCHMARK(CrossEntropyRow)->Arg(49152);

void AddRow(benchmark::State& state) {
  Run(state, 3,
      [](Rows& x, int64_t size) { Add(x[0].data(), size, x[1].data()); });
}
BENCHMARK(AddRow)->Arg(576);

}  // namespace
}  // namespace kvmix

BENCHMARK_MAIN();
