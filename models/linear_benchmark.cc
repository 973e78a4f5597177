// Linear layers of SmolLM2-135M's shapes, float32.
//   Linear/<layer>/<rows>/<threads>: y = x W^T; 1 row is a decode step, bound
//   by
//     reading the weights (bytes_per_second), 512 a prefill (flop_per_second).
//   InputGradient/<layer>/<rows>/<threads>: dx = dy W.
//   FmaPeak/<threads>: what the machine's multiply-adds reach from registers in
//     this kernel: a panel of 192 inner steps that stays in the first-level
//     cache.
#include <algorithm>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "models/linear.h"
#include "models/matmul.h"

namespace kvmix {
namespace {

struct Shape {
  const char* name;
  int64_t inputs, outputs;
};
constexpr Shape kShapes[] = {{"qkv", 576, 960},
                             {"output", 576, 576},
                             {"gate_up", 576, 3072},
                             {"down", 1536, 576},
                             {"lm_head", 576, 49152}};

void Report(benchmark::State& state, int64_t rows, const Shape& shape) {
  const double products = static_cast<double>(shape.inputs * shape.outputs);
  state.counters["flop_per_second"] =
      benchmark::Counter(2 * products * static_cast<double>(rows),
                         benchmark::Counter::kIsIterationInvariantRate);
  state.counters["bytes_per_second"] = benchmark::Counter(
      4 * products, benchmark::Counter::kIsIterationInvariantRate);
}

PanelMatrix Matrix(const Shape& shape) {
  PanelMatrix matrix(shape.inputs, shape.outputs);
  const std::vector<float> row(shape.inputs, 0.5f);
  for (int64_t n = 0; n < shape.outputs; ++n)
    matrix.SetColumns(n, 1, row.data(), shape.inputs);
  return matrix;
}

void Linear(benchmark::State& state, const Shape& shape, int64_t rows,
            int num_threads) {
  const PanelMatrix matrix = Matrix(shape);
  const std::vector<float> x(rows * shape.inputs, 0.5f);
  std::vector<float> y(rows * shape.outputs);
  ThreadPool threads(num_threads);
  for (auto _ : state)
    MultiplyRows(x.data(), rows, matrix, nullptr, y.data(), threads);
  Report(state, rows, shape);
}

void InputGradient(benchmark::State& state, const Shape& shape, int64_t rows,
                   int num_threads) {
  const PanelMatrix matrix = Matrix(shape);
  const std::vector<float> dy(rows * shape.outputs, 0.5f);
  std::vector<float> dx(rows * shape.inputs);
  ThreadPool threads(num_threads);
  for (auto _ : state)
    MultiplyTransposed(dy.data(), rows, matrix, dx.data(), threads);
  Report(state, rows, shape);
}

void FmaPeak(benchmark::State& state, int num_threads) {
  constexpr int64_t kRows = 12, kInner = 192, kRepeats = 1000;
  const Shape panel = {"panel", kInner, PanelMatrix::kWidth};
  const PanelMatrix matrix = Matrix(panel);
  const std::vector<float> x(kRows * kInner, 0.5f);
  ThreadPool threads(num_threads);
  std::vector<std::vector<float>> c(
      num_threads, std::vector<float>(kRows * PanelMatrix::kWidth));
  for (auto _ : state) {
    threads.ParallelFor(num_threads, [&](int64_t task, int) {
      for (int64_t i = 0; i < kRepeats; ++i) {
        MultiplyPanel({x.data(), kInner}, kRows, kInner, matrix.panel(0),
                      PanelMatrix::kWidth, c[task].data(), PanelMatrix::kWidth);
      }
    });
  }
  Report(state, kRows * kRepeats * num_threads, panel);
}

}  // namespace
}  // namespace kvmix

int main(int argc, char** argv) {
  for (const int threads : {1, 2}) {
    for (const kvmix::Shape& shape : kvmix::kShapes) {
      for (const int64_t rows : {1, 8, 512}) {
        const std::string name = std::string("/") + shape.name + "/" +
                                 std::to_string(rows) + "/" +
                                 std::to_string(threads);
        benchmark::RegisterBenchmark(("Linear" + name).c_str(), kvmix::Linear,
                                     shape, rows, threads)
            ->UseRealTime();
        if (rows == 1) continue;
        benchmark::RegisterBenchmark(("InputGradient" + name).c_str(),
                                     kvmix::InputGradient, shape, rows, threads)
            ->UseRealTime();
      }
    }
    benchmark::RegisterBenchmark(("FmaPeak/" + std::to_string(threads)).c_str(),
                                 kvmix::FmaPeak, threads)
        ->UseRealTime();
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
