// What linear layers are tested and timed with: every kind of stored weights in
// every compute type, and random matrices of them.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/base/half.h"
#include "kvmix/base/random.h"
#include "models/linear.h"

namespace kvmix::testing {

struct LinearCase {
  ComputeType compute;
  ElementType stored;

  std::string Name() const {
    return absl::StrCat(ComputeTypeName(compute), "_", LayoutOf(stored).name);
  }
};

inline std::vector<LinearCase> LinearCases() {
  std::vector<LinearCase> cases;
  for (const ComputeType compute :
       {ComputeType::kFloat32, ComputeType::kBFloat16, ComputeType::kInt8}) {
    for (const ElementType stored :
         {ElementType::kF32, ElementType::kF16, ElementType::kBF16,
          ElementType::kQ4_0, ElementType::kQ4_1, ElementType::kQ5_0,
          ElementType::kQ5_1, ElementType::kQ8_0, ElementType::kQ4_K,
          ElementType::kQ5_K, ElementType::kQ6_K})
      cases.push_back({compute, stored});
  }
  return cases;
}

// A matrix as stored, [rows, columns], and decoded.
struct StoredMatrix {
  ElementType type;
  int64_t rows, columns;
  std::vector<uint8_t> stored;
  std::vector<float> values;
};

// Weights of about 1; `columns` is a multiple of the type's block.
inline StoredMatrix RandomMatrix(ElementType type, int64_t rows,
                                 int64_t columns, uint64_t stream) {
  const BlockLayout& layout = LayoutOf(type);
  const int64_t blocks = rows * columns / layout.elements;
  StoredMatrix matrix = {type, rows, columns, {}, {}};
  matrix.stored.resize(blocks * layout.bytes);
  matrix.values.resize(rows * columns);
  CounterRandom random(11, stream);
  const auto put_half = [](double x, uint8_t* to) {
    const uint16_t bits = ToHalf(static_cast<float>(x)).bits;
    std::memcpy(to, &bits, sizeof(bits));
  };
  for (int64_t b = 0; b < blocks; ++b) {
    uint8_t* const to = matrix.stored.data() + b * layout.bytes;
    const double x = random.Uniform() * 2 - 1;
    for (int64_t i = 0; i < layout.bytes; ++i)
      to[i] = static_cast<uint8_t>(random.Next32());
    const auto plain = static_cast<float>(x);
    const uint16_t bfloat = ToBFloat16(plain).bits;
    switch (type) {
      case ElementType::kF32:
        std::memcpy(to, &plain, sizeof(plain));
        break;
      case ElementType::kF16:
        put_half(x, to);
        break;
      case ElementType::kBF16:
        std::memcpy(to, &bfloat, sizeof(bfloat));
        break;
      case ElementType::kQ4_0:
        put_half(x / 8, to);
        break;
      case ElementType::kQ4_1:
        put_half(x / 15, to);
        put_half(random.Uniform() - 0.5, to + 2);
        break;
      case ElementType::kQ5_0:
        put_half(x / 16, to);
        break;
      case ElementType::kQ5_1:
        put_half(x / 31, to);
        put_half(random.Uniform() - 0.5, to + 2);
        break;
      case ElementType::kQ8_0:
        put_half(x / 127, to);
        break;
      case ElementType::kQ4_K:
      case ElementType::kQ5_K:
        put_half(x / (type == ElementType::kQ4_K ? 15 : 31) / 63, to);
        put_half(random.Uniform() / 63, to + 2);
        break;
      case ElementType::kQ6_K:
        put_half(x / 32 / 127, to + 208);
        break;
    }
  }
  DecodeBlocks(type, matrix.stored.data(), rows * columns,
               matrix.values.data());
  return matrix;
}

// A layer of one matrix and no bias.
inline std::unique_ptr<LinearLayer> MakeLayer(ComputeType compute,
                                              const StoredMatrix& matrix) {
  auto layer = std::make_unique<LinearLayer>(
      compute, matrix.columns,
      std::vector<LinearLayer::Part>{{matrix.rows, matrix.type}});
  layer->SetWeightRows(0, 0, matrix.rows, matrix.stored.data(),
                       matrix.values.data());
  return layer;
}

}  // namespace kvmix::testing
