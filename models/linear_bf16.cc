// Linear layers in bf16 through oneDNN: weights and inputs are rounded to bf16,
// sums are float.
//
// oneDNN would divide a product among its own threads and sum in an order that
// depends on their number. So outputs are cut into panels of 64 and rows into
// tiles of 128, 16 and 1, always the same, and each piece is one oneDNN matmul
// run in one thread of our pool. A row's last bits may differ between the three
// tile heights.
#include <omp.h>

#include <algorithm>
#include <array>
#include <map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "dnnl.hpp"
#include "kvmix/base/half.h"
#include "models/linear.h"

namespace kvmix {
namespace {

constexpr int64_t kPanel = 64;
// Tallest first: it chooses the weights' layout.
constexpr std::array<int64_t, 3> kRowTiles = {128, 16, 1};

using Type = dnnl::memory::data_type;
using Desc = dnnl::memory::desc;

const dnnl::engine& Engine() {
  static const dnnl::engine* engine =
      new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

// Keeps oneDNN's loops in the calling thread.
class SingleThread {
 public:
  SingleThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~SingleThread() { omp_set_num_threads(before_); }

 private:
  const int before_;
};

class BFloat16Linear final : public LinearLayer {
 public:
  BFloat16Linear(int64_t num_inputs, int64_t num_outputs)
      : LinearLayer(num_inputs, num_outputs),
        staging_(num_inputs * num_outputs) {}

  void SetWeightRows(int64_t first, int64_t count, const float* rows) override {
    std::transform(rows, rows + count * num_inputs_,
                   staging_.begin() + first * num_inputs_, ToBFloat16);
  }

  void Pack() override {
    const SingleThread single;
    dnnl::stream stream(Engine());
    for (int64_t p = 0; p < num_panels(); ++p) {
      const Kernels& kernels = KernelsFor(width(p));
      dnnl::memory from(PlainWeights(width(p), Type::bf16), Engine(),
                        staging_.data() + p * kPanel * num_inputs_);
      dnnl::memory to(kernels.weights, Engine());
      dnnl::reorder(from, to).execute(stream, from, to);
      panels_.push_back(std::move(to));
    }
    stream.wait();
    staging_ = {};
  }

  void Forward(const float* x, int64_t num_rows, float* y,
               ThreadPool& threads) const override {
    std::vector<BFloat16> input(num_rows * num_inputs_);
    constexpr int64_t kRowsPerTask = 16;
    threads.ParallelFor(
        (num_rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
          const int64_t first = task * kRowsPerTask * num_inputs_;
          const int64_t end = std::min(num_rows * num_inputs_,
                                       first + kRowsPerTask * num_inputs_);
          std::transform(x + first, x + end, input.begin() + first, ToBFloat16);
        });
    threads.ParallelFor(num_panels(), [&](int64_t p, int) {
      int64_t row = 0;
      for (size_t tile = 0; tile < kRowTiles.size(); ++tile) {
        for (; num_rows - row >= kRowTiles[tile]; row += kRowTiles[tile]) {
          Multiply(p, tile, input.data() + row * num_inputs_,
                   y + row * num_outputs_);
        }
      }
    });
  }

  void CopyWeightRow(int64_t n, float* out) const override {
    const SingleThread single;
    const int64_t p = n / kPanel;
    std::vector<float> plain(width(p) * num_inputs_);
    dnnl::memory to(PlainWeights(width(p), Type::f32), Engine(), plain.data());
    dnnl::memory from = panels_[p];
    dnnl::stream stream(Engine());
    dnnl::reorder(from, to).execute(stream, from, to);
    stream.wait();
    std::copy_n(plain.begin() + n % kPanel * num_inputs_, num_inputs_, out);
  }

  int64_t bytes() const override {
    int64_t bytes = num_outputs_ * static_cast<int64_t>(sizeof(float));
    for (const dnnl::memory& panel : panels_)
      bytes += static_cast<int64_t>(panel.get_desc().get_size());
    return bytes;
  }

 private:
  struct Kernels {
    Desc weights;
    std::array<dnnl::matmul::primitive_desc, kRowTiles.size()> descs;
    std::array<dnnl::matmul, kRowTiles.size()> matmuls;
  };

  int64_t num_panels() const { return (num_outputs_ + kPanel - 1) / kPanel; }
  int64_t width(int64_t p) const {
    return std::min(kPanel, num_outputs_ - p * kPanel);
  }
  // [inputs, outputs], inputs contiguous: rows of W as they come.
  Desc PlainWeights(int64_t width, Type type) const {
    return Desc({num_inputs_, width}, type, {1, num_inputs_});
  }

  const Kernels& KernelsFor(int64_t width) {
    const auto [it, is_new] = kernels_.try_emplace(width);
    Kernels& kernels = it->second;
    if (!is_new) return kernels;
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    kernels.weights =
        Desc({num_inputs_, width}, Type::bf16, dnnl::memory::format_tag::any);
    for (size_t tile = 0; tile < kRowTiles.size(); ++tile) {
      const int64_t rows = kRowTiles[tile];
      const dnnl::matmul::desc product(
          Desc({rows, num_inputs_}, Type::bf16, {num_inputs_, 1}),
          kernels.weights, Desc({1, width}, Type::f32, {width, 1}),
          Desc({rows, width}, Type::f32, {num_outputs_, 1}));
      kernels.descs[tile] =
          dnnl::matmul::primitive_desc(product, attributes, Engine());
      kernels.matmuls[tile] = dnnl::matmul(kernels.descs[tile]);
      kernels.weights = kernels.descs[tile].weights_desc();
    }
    return kernels;
  }

  void Multiply(int64_t p, size_t tile, const BFloat16* x, float* y) const {
    const SingleThread single;
    const Kernels& kernels = kernels_.at(width(p));
    const dnnl::matmul::primitive_desc& desc = kernels.descs[tile];
    const auto memory = [](const Desc& of, const void* data) {
      return dnnl::memory(of, Engine(), const_cast<void*>(data));
    };
    dnnl::stream stream(Engine());
    kernels.matmuls[tile].execute(
        stream,
        {{DNNL_ARG_SRC, memory(desc.src_desc(), x)},
         {DNNL_ARG_WEIGHTS, panels_[p]},
         {DNNL_ARG_BIAS, memory(desc.bias_desc(), bias_.data() + p * kPanel)},
         {DNNL_ARG_DST, memory(desc.dst_desc(), y + p * kPanel)},
         {DNNL_ARG_SCRATCHPAD,
          dnnl::memory(desc.scratchpad_desc(), Engine())}});
    stream.wait();
  }

  std::vector<BFloat16> staging_;       // [N, K], until Pack
  std::map<int64_t, Kernels> kernels_;  // by panel width: 64, and the last's
  std::vector<dnnl::memory> panels_;
};

}  // namespace

absl::Status BFloat16IsSupported() {
  constexpr int kNeeded = static_cast<int>(dnnl::cpu_isa::avx512_core);
  const int available = static_cast<int>(dnnl::get_effective_cpu_isa());
  if ((available & kNeeded) == kNeeded) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "compute: BFLOAT16 needs a CPU with AVX-512 (F, BW, VL, DQ) and this one "
      "has none; use compute: FLOAT32");
}

std::unique_ptr<LinearLayer> MakeBFloat16Linear(int64_t num_inputs,
                                                int64_t num_outputs) {
  return std::make_unique<BFloat16Linear>(num_inputs, num_outputs);
}

}  // namespace kvmix
