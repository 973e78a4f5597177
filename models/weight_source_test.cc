#include "models/weight_source.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::kvmix::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;

// Tensors in memory.
class MemorySource final : public WeightSource {
 public:
  absl::Status Add(std::string name, std::vector<int64_t> shape,
                   std::vector<float> values) {
    values_.push_back(std::move(values));
    return AddTensor({std::move(name), std::move(shape), ElementType::kF32});
  }

 private:
  void CopyRows(size_t index, int64_t first_row, int64_t num_rows,
                uint8_t* out) const override {
    const std::vector<int64_t>& shape = tensors()[index].shape;
    const int64_t columns = shape.empty() ? 1 : shape.back();
    std::memcpy(out, values_[index].data() + first_row * columns,
                num_rows * columns * sizeof(float));
  }
  std::vector<std::vector<float>> values_;
};

TEST(WeightSourceTest, MissingNameListsTheNearest) {
  MemorySource source;
  for (const char* name :
       {"model.norm.weight", "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight", "lm_head.weight",
        "model.layers.1.self_attn.k_proj.weight"})
    ASSERT_OK(source.Add(name, {1}, {0}));
  EXPECT_THAT(
      source.Find("model.layers.2.self_attn.q_proj.weight"),
      StatusIs(absl::StatusCode::kNotFound,
               AllOf(HasSubstr("\"model.layers.2.self_attn.q_proj.weight\""),
                     HasSubstr("nearest of 5: "
                               "\"model.layers.0.self_attn.q_proj.weight\", "
                               "\"model.layers.1.self_attn.q_proj.weight\", "
                               "\"model.layers.1.self_attn.k_proj.weight\""))));
}

TEST(WeightSourceTest, EmptySourceSaysSo) {
  EXPECT_THAT(MemorySource().Find("x"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("has none")));
}

TEST(WeightSourceTest, WrongShapeNamesBoth) {
  MemorySource source;
  ASSERT_OK(source.Add("w", {2, 3}, std::vector<float>(6)));
  float out[6];
  EXPECT_THAT(source.ReadFloat("w", {3, 2}, out),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("[2, 3]"), HasSubstr("[3, 2]"))));
}

TEST(WeightSourceTest, NameGivenTwiceIsRefused) {
  MemorySource source;
  ASSERT_OK(source.Add("w", {1}, {0}));
  EXPECT_THAT(source.Add("w", {1}, {0}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("\"w\" occurs twice")));
}

TEST(WeightSourceTest, FirstNonFiniteWeightIsNamedWithItsIndex) {
  ThreadPool pool(3);
  for (ThreadPool* used : {static_cast<ThreadPool*>(nullptr), &pool}) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(),
                            -std::numeric_limits<float>::infinity()}) {
      MemorySource source;
      std::vector<float> values(1000 * 200, 0.5f);
      values[700 * 200 + 17] = bad;
      values[900 * 200 + 3] = bad;
      std::vector<float> out(values.size());
      ASSERT_OK(source.Add("w", {1000, 200}, std::move(values)));
      EXPECT_THAT(source.ReadFloat("w", {1000, 200}, out.data(), used),
                  StatusIs(absl::StatusCode::kInvalidArgument,
                           AllOf(HasSubstr("\"w\""), HasSubstr("[700, 17]"),
                                 HasSubstr(std::isnan(bad) ? "nan" : "-inf"))));
    }
  }
}

TEST(WeightSourceTest, ThreadsDoNotChangeTheResult) {
  MemorySource source;
  std::vector<float> values(777 * 301);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(i) * 0.25f;
  ASSERT_OK(source.Add("w", {777, 301}, values));
  std::vector<float> out(values.size());
  ThreadPool pool(4);
  ASSERT_OK(source.ReadFloat("w", {777, 301}, out.data(), &pool));
  EXPECT_EQ(out, values);
}

// Stored bytes and floats of every row, once, in runs that begin at multiples
// of 32.
TEST(WeightSourceTest, EveryRowIsShownOnceAsStoredAndDecoded) {
  MemorySource source;
  std::vector<float> values(1000 * 301);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(i) * 0.25f;
  ASSERT_OK(source.Add("w", {1000, 301}, values));
  std::vector<std::atomic<int>> shown(1000);
  ThreadPool pool(4);
  ASSERT_OK(source.ReadRows(
      "w", {1000, 301}, &pool, [&](const WeightSource::Rows& rows) {
        EXPECT_EQ(rows.first % 32, 0);
        EXPECT_EQ(std::memcmp(rows.stored, rows.values,
                              rows.count * 301 * sizeof(float)),
                  0);
        EXPECT_EQ(rows.values[0], values[rows.first * 301]);
        for (int64_t r = 0; r < rows.count; ++r) ++shown[rows.first + r];
      }));
  for (const std::atomic<int>& times : shown) EXPECT_EQ(times, 1);
}

TEST(WeightSourceTest, ScalarHasOneElement) {
  MemorySource source;
  ASSERT_OK(source.Add("w", {}, {2.5f}));
  float out = 0;
  ASSERT_OK(source.ReadFloat("w", {}, &out));
  EXPECT_EQ(out, 2.5f);
}

TEST(CountElementsTest, RefusesWhatDoesNotFit) {
  EXPECT_EQ(*CountElements({3, 4}), 12);
  EXPECT_EQ(*CountElements({}), 1);
  EXPECT_FALSE(CountElements({int64_t{1} << 32, int64_t{1} << 31}).ok());
  EXPECT_FALSE(CountElements({-1, -1}).ok());
}

}  // namespace
}  // namespace kvmix
