#include "models/random_model.h"

#include <cmath>
#include <vector>

#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::kvmix::testing::StatusIs;
using ::testing::HasSubstr;

constexpr ElementType kTypes[] = {ElementType::kF32,  ElementType::kF16,
                                  ElementType::kBF16, ElementType::kQ8_0,
                                  ElementType::kQ4_0, ElementType::kQ4_1};

TEST(RandomModelTest, EveryShapeIsAValidModel) {
  for (const std::string& name : RandomModelShapes()) {
    const auto config = RandomModelConfig(name);
    ASSERT_OK(config.status()) << name;
    EXPECT_OK(Validate(*config)) << name;
    for (const ElementType type : kTypes)
      EXPECT_OK(MakeRandomWeights(*config, type, 1).status()) << name;
  }
}

TEST(RandomModelTest, AShapeTakesAnotherNumberOfLayers) {
  const ModelConfig whole = *RandomModelConfig("135m");
  const ModelConfig short_one = *RandomModelConfig("135m:12");
  EXPECT_EQ(whole.num_layers, 30);
  EXPECT_EQ(short_one.num_layers, 12);
  EXPECT_EQ(short_one.hidden_size, whole.hidden_size);
  for (const char* name :
       {"135m:", "135m:0", "135m:x", "135m:2000", "135m:2:3"})
    EXPECT_THAT(RandomModelConfig(name).status(),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         HasSubstr("from 1 to 1024")))
        << name;
}

TEST(RandomModelTest, TheSmallShapeHas135MillionWeights) {
  int64_t count = 0;
  for (const ExpectedTensor& tensor :
       ExpectedTensors(*RandomModelConfig("135m")))
    count += *CountElements(tensor.shape);
  EXPECT_EQ(count, 134515008);  // that of HuggingFaceTB/SmolLM2-135M
}

// Mean 0 and variance 1 / inputs, which keeps activations their size.
TEST(RandomModelTest, WeightsHaveTheVarianceOfTheirRows) {
  const ModelConfig config = *RandomModelConfig("135m");
  for (const ElementType type : kTypes) {
    const auto weights = *MakeRandomWeights(config, type, 1);
    std::vector<float> w(1536 * 576);
    ASSERT_OK(weights->ReadFloat("model.layers.3.mlp.up_proj.weight",
                                 {1536, 576}, w.data()));
    double sum = 0, squares = 0;
    for (const float x : w) {
      sum += x;
      squares += double{x} * x;
    }
    const double n = static_cast<double>(w.size());
    const double deviation = std::sqrt(1.0 / 576);
    EXPECT_NEAR(sum / n, 0, 0.07 * deviation) << LayoutOf(type).name;
    EXPECT_NEAR(std::sqrt(squares / n), 1.25 * deviation, 0.3 * deviation)
        << LayoutOf(type).name;
  }
}

// How rows are cut into runs, threads and repetition change nothing; the seed
// and the tensor do.
TEST(RandomModelTest, WeightsAreAFunctionOfSeedTensorAndRow) {
  const ModelConfig config = *RandomModelConfig("135m");
  const std::string key = "model.layers.0.self_attn.k_proj.weight";
  const std::string value = "model.layers.0.self_attn.v_proj.weight";
  for (const ElementType type : kTypes) {
    const auto read = [&](uint64_t seed, const std::string& name,
                          ThreadPool* pool) {
      std::vector<float> w(192 * 576);
      EXPECT_OK((*MakeRandomWeights(config, type, seed))
                    ->ReadFloat(name, {192, 576}, w.data(), pool));
      return w;
    };
    ThreadPool pool(3);
    const std::vector<float> first = read(1, key, nullptr);
    EXPECT_EQ(first, read(1, key, &pool));
    EXPECT_NE(first, read(2, key, nullptr));
    EXPECT_NE(first, read(1, value, nullptr));
    EXPECT_NE(std::vector<float>(first.begin(), first.begin() + 576),
              std::vector<float>(first.begin() + 576, first.begin() + 1152));
  }
}

TEST(RandomModelTest, UnknownShapesAndTypesAreRefused) {
  EXPECT_THAT(RandomModelConfig("7b"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("use 135m, 1b")));
  ModelConfig config = *RandomModelConfig("135m");
  EXPECT_THAT(MakeRandomWeights(config, ElementType::kQ6_K, 1),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("Q6_K")));
  config.intermediate_size = 1000;
  EXPECT_THAT(
      MakeRandomWeights(config, ElementType::kQ8_0, 1),
      StatusIs(absl::StatusCode::kInvalidArgument,
               HasSubstr("rows of 1000 elements but Q8_0 needs a multiple")));
}

}  // namespace
}  // namespace kvmix
