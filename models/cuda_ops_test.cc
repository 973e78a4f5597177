// The device's operations against the CPU's (ops.h, which has its own test
// against formulas), on shapes with tails.
#include "models/cuda_ops.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "gtest/gtest.h"
#include "kvmix/base/device_vector.h"
#include "models/ops.h"

namespace kvmix {
namespace {

template <typename T>
constexpr CudaNumber kNumber =
    std::is_same_v<T, float>    ? CudaNumber::kFloat
    : std::is_same_v<T, __half> ? CudaNumber::kHalf
                                : CudaNumber::kBFloat16;
// Half of the distance of 1 to the next number.
template <typename T>
constexpr double kEpsilon = std::is_same_v<T, float>    ? 6e-8
                            : std::is_same_v<T, __half> ? 4.9e-4
                                                        : 3.9e-3;

std::vector<float> Wave(int64_t size, double phase) {
  std::vector<float> x(size);
  for (int64_t i = 0; i < size; ++i)
    x[i] = static_cast<float>(1.7 * std::sin(1.3 * i + phase));
  return x;
}

// Sums of floats in another order than the CPU's, and device arithmetic within
// 2 units of its own: a few 1e-6 of numbers near 1.
constexpr double kSumError = 5e-6;

template <typename T>
void ExpectRows(const std::vector<T>& got, const std::vector<float>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_NEAR(
        static_cast<float>(got[i]), want[i],
        kEpsilon<T> * std::abs(want[i]) + kSumError * (1 + std::abs(want[i])))
        << i;
  }
}

template <typename T>
class CudaOpsOfTypeTest : public testing::Test {};
using Types = testing::Types<float, __half, __nv_bfloat16>;
TYPED_TEST_SUITE(CudaOpsOfTypeTest, Types);

TYPED_TEST(CudaOpsOfTypeTest, EmbeddingIsTheTokensRow) {
  const int size = 37, vocab = 11;
  std::vector<TypeParam> table;
  for (float x : Wave(vocab * size, 0)) table.push_back(TypeParam(x));
  const std::vector<int32_t> tokens = {3, 10, 0, 3};
  DeviceVector<TypeParam> dtable(table);
  DeviceVector<int32_t> dtokens(tokens);
  DeviceVector<float> hidden(tokens.size() * size);
  ASSERT_EQ(CudaEmbed(dtable.data(), kNumber<TypeParam>, dtokens.data(),
                      tokens.size(), size, hidden.data(), nullptr),
            cudaSuccess);
  const std::vector<float> got = hidden.ToHost();
  for (size_t r = 0; r < tokens.size(); ++r) {
    for (int i = 0; i < size; ++i) {
      EXPECT_EQ(got[r * size + i],
                static_cast<float>(table[tokens[r] * size + i]));
    }
  }
}

TYPED_TEST(CudaOpsOfTypeTest, RmsNormOfChosenRows) {
  for (const int size : {1, 37, 128, 300}) {
    const auto x = Wave(5 * size, 0), weight = Wave(size, 1);
    const std::vector<int32_t> rows = {4, 0, 2};
    DeviceVector<float> dx(x), dweight(weight);
    DeviceVector<int32_t> drows(rows);
    DeviceVector<TypeParam> some(3 * size), all(5 * size);
    ASSERT_EQ(CudaRmsNorm(dx.data(), drows.data(), dweight.data(), 1e-5f, 3,
                          size, some.data(), kNumber<TypeParam>, nullptr),
              cudaSuccess);
    ASSERT_EQ(CudaRmsNorm(dx.data(), nullptr, dweight.data(), 1e-5f, 5, size,
                          all.data(), kNumber<TypeParam>, nullptr),
              cudaSuccess);
    std::vector<float> want_some, want_all;
    std::vector<float> y(size);
    for (int32_t r : rows) {
      RmsNorm(x.data() + r * size, weight.data(), 1e-5f, size, y.data());
      want_some.insert(want_some.end(), y.begin(), y.end());
    }
    for (int r = 0; r < 5; ++r) {
      RmsNorm(x.data() + r * size, weight.data(), 1e-5f, size, y.data());
      want_all.insert(want_all.end(), y.begin(), y.end());
    }
    ExpectRows(some.ToHost(), want_some);
    ExpectRows(all.ToHost(), want_all);
  }
}

TYPED_TEST(CudaOpsOfTypeTest, SwiGlu) {
  const int rows = 3, inner = 53;
  const auto gate_up = Wave(rows * 2 * inner, 0);
  DeviceVector<float> dgate_up(gate_up);
  DeviceVector<TypeParam> out(rows * inner);
  ASSERT_EQ(CudaSwiGlu(dgate_up.data(), rows, inner, out.data(),
                       kNumber<TypeParam>, nullptr),
            cudaSuccess);
  std::vector<float> want(rows * inner);
  for (int r = 0; r < rows; ++r) {
    SwiGlu(gate_up.data() + r * 2 * inner,
           gate_up.data() + r * 2 * inner + inner, inner,
           want.data() + r * inner);
  }
  ExpectRows(out.ToHost(), want);
}

TEST(CudaOpsTest, RmsNormGradientIsAdded) {
  const int rows = 3;
  for (const int size : {1, 37, 300}) {
    const auto x = Wave(rows * size, 0), weight = Wave(size, 1),
               dy = Wave(rows * size, 2), before = Wave(rows * size, 3);
    DeviceVector<float> dx(x), dweight(weight), ddy(dy), out(before);
    ASSERT_EQ(CudaRmsNormGradient(dx.data(), dweight.data(), 1e-5f, ddy.data(),
                                  rows, size, out.data(), nullptr),
              cudaSuccess);
    std::vector<float> want(rows * size);
    for (int r = 0; r < rows; ++r) {
      RmsNormGradient(x.data() + r * size, weight.data(), 1e-5f,
                      dy.data() + r * size, size, want.data() + r * size);
    }
    for (size_t i = 0; i < want.size(); ++i) want[i] += before[i];
    ExpectRows(out.ToHost(), want);
  }
}

TEST(CudaOpsTest, SwiGluGradientInPlace) {
  const int rows = 3, inner = 53;
  const auto gate_up = Wave(rows * 2 * inner, 0), dy = Wave(rows * inner, 2);
  DeviceVector<float> d(gate_up), ddy(dy);
  ASSERT_EQ(
      CudaSwiGluGradient(d.data(), ddy.data(), rows, inner, d.data(), nullptr),
      cudaSuccess);
  std::vector<float> want(gate_up.size());
  for (int r = 0; r < rows; ++r) {
    const float* gate = gate_up.data() + r * 2 * inner;
    float* dgate = want.data() + r * 2 * inner;
    SwiGluGradient(gate, gate + inner, dy.data() + r * inner, inner, dgate,
                   dgate + inner);
  }
  ExpectRows(d.ToHost(), want);
}

// A family of heads: Llama has neither biases nor norms, Qwen2 biases, Qwen3
// norms.
struct HeadsCase {
  const char* name;
  int num_heads, num_kv_heads, head_dim;
  bool bias, norm;
};
std::ostream& operator<<(std::ostream& out, const HeadsCase& c) {
  return out << c.name;
}

class CudaHeadsTest : public testing::TestWithParam<HeadsCase> {
 protected:
  static constexpr int kRows = 3;
  static constexpr int kPositions = 9;

  CudaHeadsTest() {
    const HeadsCase& c = GetParam();
    config_.num_heads = c.num_heads;
    config_.num_kv_heads = c.num_kv_heads;
    config_.head_dim = c.head_dim;
    config_.rms_norm_eps = 1e-5f;
    row_ = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim;
    bias_ = c.bias ? Wave(row_, 4) : std::vector<float>(row_);
    if (c.norm) {
      query_norm_ = Wave(c.head_dim, 5);
      key_norm_ = Wave(c.head_dim, 6);
    }
    const Rope rope(config_);
    cos_.resize(kPositions * c.head_dim / 2);
    sin_ = cos_;
    for (int p = 0; p < kPositions; ++p) {
      rope.Angles(p, cos_.data() + p * c.head_dim / 2,
                  sin_.data() + p * c.head_dim / 2);
    }
  }

  // What CudaPrepareHeads should make of a row.
  void Prepare(int position, float* row) const {
    const int half = config_.head_dim / 2;
    for (int i = 0; i < row_; ++i) row[i] += bias_[i];
    const float* cos = cos_.data() + position * half;
    const float* sin = sin_.data() + position * half;
    NormAndRotateHeads(config_, query_norm_, config_.num_heads, cos, sin, row);
    NormAndRotateHeads(config_, key_norm_, config_.num_kv_heads, cos, sin,
                       row + config_.num_heads * config_.head_dim);
  }

  // What CudaPrepareHeadsGradient should make of dy.
  void PrepareGradient(int position, const float* row, float* dy) const {
    const int dim = config_.head_dim;
    for (int h = 0; h < config_.num_heads + config_.num_kv_heads; ++h) {
      float* g = dy + h * dim;
      RotateBack(g, dim, cos_.data() + position * dim / 2,
                 sin_.data() + position * dim / 2);
      if (query_norm_.empty()) continue;
      std::vector<float> x(row + h * dim, row + (h + 1) * dim);
      for (int i = 0; i < dim; ++i) x[i] += bias_[h * dim + i];
      const auto& norm = h < config_.num_heads ? query_norm_ : key_norm_;
      RmsNormGradient(x.data(), norm.data(), 1e-5f, g, dim, g);
    }
  }

  ModelConfig config_;
  int row_;
  std::vector<float> bias_, query_norm_, key_norm_, cos_, sin_;
};

TEST_P(CudaHeadsTest, MatchesTheCpu) {
  const HeadsCase& c = GetParam();
  const auto x = Wave(kRows * row_, 0), dy = Wave(kRows * row_, 2);
  const std::vector<int32_t> positions = {8, 0, 5};
  DeviceVector<float> qkv(x), projected(x), gradient(dy), bias(bias_),
      cos(cos_), sin(sin_);
  DeviceVector<float> query_norm(std::max<size_t>(1, query_norm_.size()));
  DeviceVector<float> key_norm(query_norm.size());
  if (c.norm) {
    cudaMemcpy(query_norm.data(), query_norm_.data(), c.head_dim * 4,
               cudaMemcpyHostToDevice);
    cudaMemcpy(key_norm.data(), key_norm_.data(), c.head_dim * 4,
               cudaMemcpyHostToDevice);
  }
  DeviceVector<int32_t> dpositions(positions);
  const CudaHeads heads = {.num_heads = c.num_heads,
                           .num_kv_heads = c.num_kv_heads,
                           .head_dim = c.head_dim,
                           .eps = 1e-5f,
                           .bias = c.bias ? bias.data() : nullptr,
                           .query_norm = c.norm ? query_norm.data() : nullptr,
                           .key_norm = c.norm ? key_norm.data() : nullptr,
                           .cos = cos.data(),
                           .sin = sin.data()};
  ASSERT_EQ(
      CudaPrepareHeads(heads, dpositions.data(), kRows, qkv.data(), nullptr),
      cudaSuccess);
  ASSERT_EQ(
      CudaPrepareHeadsGradient(heads, dpositions.data(), kRows,
                               projected.data(), gradient.data(), nullptr),
      cudaSuccess);
  std::vector<float> want = x, dwant = dy;
  for (int r = 0; r < kRows; ++r) {
    Prepare(positions[r], want.data() + r * row_);
    PrepareGradient(positions[r], x.data() + r * row_, dwant.data() + r * row_);
  }
  ExpectRows(qkv.ToHost(), want);
  ExpectRows(gradient.ToHost(), dwant);
}

INSTANTIATE_TEST_SUITE_P(
    Families, CudaHeadsTest,
    testing::Values(HeadsCase{"Llama", 4, 2, 64, false, false},
                    HeadsCase{"Qwen2", 3, 1, 16, true, false},
                    HeadsCase{"Qwen3", 2, 2, 80, false, true},
                    HeadsCase{"BiasAndNorm", 2, 1, 24, true, true}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(CudaOpsTest, CausalSoftmaxAndItsGradient) {
  for (const int64_t window : {0, 1, 70}) {
    const int tokens = 150;
    const auto scores = Wave(tokens * tokens, 0), dp = Wave(tokens * tokens, 1);
    DeviceVector<float> p(scores), ds(dp);
    ASSERT_EQ(CudaCausalSoftmax(tokens, window, p.data(), nullptr),
              cudaSuccess);
    ASSERT_EQ(CudaSoftmaxGradient(p.data(), tokens, 0.25f, ds.data(), nullptr),
              cudaSuccess);
    std::vector<float> want(tokens * tokens), dwant(tokens * tokens);
    for (int t = 0; t < tokens; ++t) {
      const int first = window > 0 ? std::max<int>(0, t + 1 - window) : 0;
      const int count = t + 1 - first, at = t * tokens + first;
      std::copy_n(scores.data() + at, count, want.data() + at);
      Softmax(want.data() + at, count, 1);
      std::copy_n(dp.data() + at, count, dwant.data() + at);
      SoftmaxGradient(want.data() + at, count, 0.25f, dwant.data() + at);
    }
    ExpectRows(p.ToHost(), want);
    ExpectRows(ds.ToHost(), dwant);
  }
}

TEST(CudaOpsTest, CrossEntropyAndItsGradient) {
  for (const int vocab : {1, 50, 300}) {
    const int rows = 3;
    std::vector<float> logits = Wave(rows * vocab, 0);
    for (float& x : logits) x = x * 20 + 500;  // only the differences matter
    const std::vector<int32_t> labels = {0, vocab / 2, vocab - 1};
    DeviceVector<float> d(logits), loss(rows);
    DeviceVector<int32_t> dlabels(labels);
    ASSERT_EQ(CudaCrossEntropyGradient(d.data(), dlabels.data(), rows, vocab,
                                       0.5f, loss.data(), nullptr),
              cudaSuccess);
    std::vector<float> want_loss;
    for (int r = 0; r < rows; ++r) {
      want_loss.push_back(static_cast<float>(CrossEntropyGradient(
          logits.data() + r * vocab, vocab, labels[r], 0.5f)));
    }
    const std::vector<float> got = loss.ToHost();
    // A logit of 500 has a unit of 3e-5.
    for (int r = 0; r < rows; ++r) EXPECT_NEAR(got[r], want_loss[r], 1e-4);
    ExpectRows(d.ToHost(), logits);
  }
}

}  // namespace
}  // namespace kvmix
