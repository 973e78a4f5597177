// Linear layers of SmolLM2-135M's shapes, for every compute type and stored
// type that linear_test.cc checks.
//   Linear/<case>/<layer>/<rows>/<threads>: y = x W^T; 1 row is a decode step,
//     bound by reading the weights (bytes_per_second), 512 a prefill
//     (flop_per_second).
//   InputGradient/<case>/<layer>/<rows>/<threads>: dx = dy W.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "models/linear.h"
#include "models/linear_cases.h"

namespace kvmix {
namespace {

struct Shape {
  const char* name;
  int64_t inputs, outputs;
};
// k-quants have blocks of 256 inputs: theirs are shapes of SmolLM2-360M's kind.
constexpr Shape kShapes[] = {
    {"qkv", 576, 960},   {"output", 576, 576},    {"gate_up", 576, 3072},
    {"down", 1536, 576}, {"lm_head", 576, 49152}, {"gate_up_768", 768, 4096}};

void Report(benchmark::State& state, int64_t rows, const Shape& shape,
            const LinearLayer& layer) {
  const double products = static_cast<double>(shape.inputs * shape.outputs);
  state.counters["flop_per_second"] =
      benchmark::Counter(2 * products * static_cast<double>(rows),
                         benchmark::Counter::kIsIterationInvariantRate);
  state.counters["bytes_per_second"] =
      benchmark::Counter(static_cast<double>(layer.bytes()),
                         benchmark::Counter::kIsIterationInvariantRate);
}

void Linear(benchmark::State& state, testing::LinearCase c, const Shape& shape,
            int64_t rows, int num_threads) {
  const auto layer = testing::MakeLayer(
      c.compute,
      testing::RandomMatrix(c.stored, shape.outputs, shape.inputs, 0));
  const std::vector<float> x(rows * shape.inputs, 0.5f);
  std::vector<float> y(rows * shape.outputs);
  ThreadPool threads(num_threads);
  for (auto _ : state) layer->Forward(x.data(), rows, y.data(), threads);
  Report(state, rows, shape, *layer);
}

void InputGradient(benchmark::State& state, testing::LinearCase c,
                   const Shape& shape, int64_t rows, int num_threads) {
  const auto layer = testing::MakeLayer(
      c.compute,
      testing::RandomMatrix(c.stored, shape.outputs, shape.inputs, 0));
  const std::vector<float> dy(rows * shape.outputs, 0.5f);
  std::vector<float> dx(rows * shape.inputs);
  ThreadPool threads(num_threads);
  for (auto _ : state)
    layer->InputGradient(dy.data(), rows, dx.data(), threads);
  Report(state, rows, shape, *layer);
}

void Register(const testing::LinearCase& c, const Shape& shape, int64_t rows,
              int threads) {
  const std::string name =
      absl::StrCat("/", c.Name(), "/", shape.name, "/", rows, "/", threads);
  benchmark::RegisterBenchmark(("Linear" + name).c_str(), Linear, c, shape,
                               rows, threads)
      ->UseRealTime();
  if (rows < 512 || c.compute != ComputeType::kFloat32) return;
  benchmark::RegisterBenchmark(("InputGradient" + name).c_str(), InputGradient,
                               c, shape, rows, threads)
      ->UseRealTime();
}

}  // namespace
}  // namespace kvmix

int main(int argc, char** argv) {
  for (const kvmix::testing::LinearCase& c : kvmix::testing::LinearCases()) {
    for (const kvmix::Shape& shape : kvmix::kShapes) {
      if (shape.inputs % kvmix::LayoutOf(c.stored).elements != 0) continue;
      for (const int64_t rows : {1, 8, 512}) {
        for (const int threads : {1, 2})
          kvmix::Register(c, shape, rows, threads);
      }
    }
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
