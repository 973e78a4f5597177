#include "models/linear.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kvmix/base/check.h"

namespace kvmix {
namespace {

constexpr int64_t kWidth = kPanelOutputs;
static_assert(kWidth == PanelMatrix::kWidth);

// Rows that share a panel's pass through the caches: 192 rows of 192 inputs are
// 144 KiB of float.
constexpr int64_t kRowTile = 192;
// From so many rows on, a task is one panel; below, a run of panels of at least
// this many bytes, so that handing it to a thread pays, and no more tasks than
// this for a thread: each begins with memory that nothing asked for ahead.
constexpr int64_t kManyRows = 16;
constexpr int64_t kTaskBytes = int64_t{1} << 16;
constexpr int64_t kTasksPerThread = 4;
// Inputs that one thread rounds to another type faster than two.
constexpr int64_t kElementsPerRounding = int64_t{1} << 15;

}  // namespace

int64_t LinearLayer::ArenaBytes(ComputeType compute, int64_t num_inputs,
                                const std::vector<Part>& parts) {
  int64_t bytes = 0;
  for (const Part& part : parts) {
    bytes += WeightMatrix::BytesFor(compute, part.stored, num_inputs,
                                    part.num_outputs) +
             WeightArena::kAlignment;
  }
  return bytes;
}

LinearLayer::LinearLayer(ComputeType compute, int64_t num_inputs,
                         const std::vector<Part>& parts,
                         std::shared_ptr<WeightArena> arena)
    : compute_(compute),
      num_inputs_(num_inputs),
      arena_(arena != nullptr ? std::move(arena)
                              : std::make_shared<WeightArena>(
                                    ArenaBytes(compute, num_inputs, parts))) {
  int64_t num_outputs = 0;
  for (const Part& part : parts) {
    parts_.push_back(
        {num_outputs, WeightMatrix(compute, part.stored, num_inputs,
                                   part.num_outputs, *arena_)});
    num_outputs += part.num_outputs;
  }
  bias_.resize(num_outputs);
}

int64_t LinearLayer::bytes() const {
  int64_t bytes = num_outputs() * static_cast<int64_t>(sizeof(float));
  for (const Placed& part : parts_) bytes += part.matrix.bytes();
  return bytes;
}

void LinearLayer::SetBias(int64_t first, int64_t count, const float* bias) {
  KVMIX_CHECK(first >= 0 && first + count <= num_outputs());
  std::copy_n(bias, count, bias_.begin() + first);
}

LinearLayer::Inputs LinearLayer::Prepare(const float* x, int64_t num_rows,
                                         ThreadPool& threads) const {
  if (compute_ == ComputeType::kFloat32)
    return {.floats = x,
            .bfloats = nullptr,
            .int8s = nullptr,
            .stride = num_inputs_};
  static thread_local AlignedBuffer rounded;
  const int64_t blocks = (num_inputs_ + kBlockInputs - 1) / kBlockInputs;
  const bool is_int8 = compute_ == ComputeType::kInt8;
  const int64_t row_bytes =
      blocks * static_cast<int64_t>(is_int8 ? sizeof(Int8Block)
                                            : kBlockInputs * sizeof(BFloat16));
  rounded.Reserve(num_rows * row_bytes / static_cast<int64_t>(sizeof(float)));
  auto* const int8s = reinterpret_cast<Int8Block*>(rounded.get());
  auto* const bfloats = reinterpret_cast<BFloat16*>(rounded.get());
  const int64_t rows_per_task =
      std::max<int64_t>(1, kElementsPerRounding / num_inputs_);
  threads.ParallelFor(
      (num_rows + rows_per_task - 1) / rows_per_task, [&](int64_t task, int) {
        const int64_t end = std::min(num_rows, (task + 1) * rows_per_task);
        for (int64_t r = task * rows_per_task; r < end; ++r) {
          const float* row = x + r * num_inputs_;
          if (is_int8) {
            RoundToInt8(row, num_inputs_, int8s + r * blocks);
          } else {
            RoundToBFloat16(row, num_inputs_,
                            bfloats + r * blocks * kBlockInputs);
          }
        }
      });
  return {.floats = nullptr,
          .bfloats = bfloats,
          .int8s = int8s,
          .stride = is_int8 ? blocks : blocks * kBlockInputs};
}

void LinearLayer::MultiplyTile(const Placed& part, int64_t p, const Inputs& x,
                               int64_t row, int64_t num_rows, float* y) const {
  const WeightMatrix& matrix = part.matrix;
  const int64_t width = matrix.width(p);
  const int64_t output = part.first_output + p * kWidth;
  float* const target = y + row * num_outputs() + output;
  // Kernels write whole panels: the last, narrow one goes through a tile.
  alignas(128) float tile[kRowTile * kWidth];
  const bool is_whole = width == kWidth;
  float* const c = is_whole ? target : tile;
  const int64_t c_stride = is_whole ? num_outputs() : kWidth;
  alignas(128) float bias[kWidth] = {};
  std::copy_n(bias_.data() + output, width, bias);
  for (int64_t r = 0; r < num_rows; ++r)
    std::memcpy(c + r * c_stride, bias, sizeof(bias));
  const uint8_t* const blocks = matrix.panel(p);
  const int64_t first = row * x.stride;
  switch (compute_) {
    case ComputeType::kFloat32:
      MultiplyFloat(matrix.layout(), x.floats + first, x.stride, num_rows,
                    blocks, num_inputs_, c, c_stride);
      break;
    case ComputeType::kBFloat16:
      MultiplyBFloat16(matrix.layout(), x.bfloats + first, x.stride, num_rows,
                       blocks, matrix.num_blocks(), c, c_stride);
      break;
    case ComputeType::kInt8:
      MultiplyInt8(matrix.layout(), x.int8s + first, x.stride, num_rows, blocks,
                   matrix.num_blocks(), c, c_stride);
      break;
  }
  for (int64_t r = 0; r < num_rows && !is_whole; ++r)
    std::copy_n(tile + r * kWidth, width, target + r * num_outputs());
}

void LinearLayer::Forward(const float* x, int64_t num_rows, float* y,
                          ThreadPool& threads) const {
  if (num_rows == 0) return;
  const Inputs inputs = Prepare(x, num_rows, threads);
  int64_t num_panels = 0, bytes = 0;
  for (const Placed& part : parts_) {
    num_panels += part.matrix.num_panels();
    bytes += part.matrix.bytes();
  }
  const int64_t by_bytes = kTaskBytes * num_panels / bytes;
  const int64_t by_threads =
      num_panels / (kTasksPerThread * threads.num_threads());
  const int64_t panels_per_task =
      num_rows >= kManyRows
          ? 1
          : std::clamp<int64_t>(std::max(by_bytes, by_threads), 1, num_panels);
  const int64_t column_tasks =
      (num_panels + panels_per_task - 1) / panels_per_task;
  const int64_t row_tiles = (num_rows + kRowTile - 1) / kRowTile;
  threads.ParallelFor(column_tasks * row_tiles, [&](int64_t task, int) {
    const int64_t row = task / column_tasks * kRowTile;
    const int64_t rows = std::min(kRowTile, num_rows - row);
    const int64_t first = task % column_tasks * panels_per_task;
    const int64_t last = std::min(first + panels_per_task, num_panels);
    int64_t before = 0;  // panels of the parts before
    for (const Placed& part : parts_) {
      const int64_t count = part.matrix.num_panels();
      for (int64_t p = std::max<int64_t>(0, first - before);
           p < std::min(count, last - before); ++p)
        MultiplyTile(part, p, inputs, row, rows, y);
      before += count;
    }
  });
}

void LinearLayer::InputGradient(const float* dy, int64_t num_rows, float* dx,
                                ThreadPool& threads) const {
  // Task t owns inputs [32 t, 32 t + 32) of all rows: one block of each panel.
  // Blocks of 6 panels are decoded and turned at a time, into a panel
  // [192 outputs][32 inputs] of 24 KiB.
  constexpr int64_t kPanels = 6;
  const int64_t num_blocks = (num_inputs_ + kBlockInputs - 1) / kBlockInputs;
  threads.ParallelFor(num_blocks, [&](int64_t b, int) {
    const int64_t first = b * kBlockInputs;
    const int64_t width = std::min(kBlockInputs, num_inputs_ - first);
    alignas(128) float turned[kPanels * kWidth * kBlockInputs];
    alignas(128) float decoded[kBlockInputs * kWidth];
    for (int64_t m = 0; m < num_rows; ++m)
      std::fill_n(dx + m * num_inputs_ + first, width, 0.0f);
    for (const Placed& part : parts_) {
      const WeightMatrix& matrix = part.matrix;
      for (int64_t p = 0; p < matrix.num_panels(); p += kPanels) {
        const int64_t end = std::min(p + kPanels, matrix.num_panels());
        for (int64_t q = p; q < end; ++q) {
          DecodePanelBlocks(
              matrix.layout(),
              matrix.panel(q) + b * WeightBlockBytes(matrix.layout()), 1,
              decoded);
          Transpose32(decoded, kWidth, turned + (q - p) * kWidth * kBlockInputs,
                      kBlockInputs);
        }
        const int64_t steps =
            std::min(end * kWidth, matrix.num_outputs()) - p * kWidth;
        MultiplyPanel({dy + part.first_output + p * kWidth, num_outputs()},
                      num_rows, steps, turned, width, dx + first, num_inputs_);
      }
    }
  });
}

void LinearLayer::CopyWeightRow(int64_t n, float* out) const {
  const auto after =
      std::find_if(parts_.begin(), parts_.end(),
                   [n](const Placed& part) { return part.first_output > n; });
  const Placed& part = *(after - 1);
  part.matrix.CopyRow(n - part.first_output, out);
}

}  // namespace kvmix
