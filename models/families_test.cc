// A tiny random model of each family, from safetensors and from GGUF, against
// what PyTorch computes with it (testdata/families,
// tools/make_model_goldens.py).
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kvmix/base/file.h"
#include "kvmix/base/status_matchers.h"
#include "models/backward.h"
#include "models/model_files.h"
#include "models/test_model.h"
#include "models/transformer.h"

namespace kvmix {
namespace {

using Json = nlohmann::json;

class FamiliesTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::string folder = "models/testdata/families/" + GetParam();
    const bool is_gguf = folder.ends_with("_gguf");
    ASSERT_OK_AND_ASSIGN(const std::string text,
                         ReadFile(folder + "/golden.json"));
    golden_ = Json::parse(text);
    tokens_ = golden_["tokens"].get<std::vector<int32_t>>();
    ASSERT_OK_AND_ASSIGN(files_,
                         OpenModel(is_gguf ? folder + "/model.gguf" : folder));
    ASSERT_OK_AND_ASSIGN(
        model_,
        Transformer::Load(files_.config, *files_.weights, {.num_threads = 2}));
  }

  Json golden_;
  std::vector<int32_t> tokens_;
  ModelFiles files_;
  std::unique_ptr<Transformer> model_;
};

// Relative error of the rows that the golden file has; the most likely token of
// all.
double LogitsError(const Json& golden, const std::vector<float>& logits,
                   int64_t vocab) {
  double error = 0, size = 0;
  for (size_t i = 0; i < golden["logit_rows"].size(); ++i) {
    const int64_t row = golden["logit_rows"][i];
    for (int64_t v = 0; v < vocab; ++v) {
      const double expected = golden["logits"][i][v];
      error += std::pow(logits[row * vocab + v] - expected, 2);
      size += expected * expected;
    }
  }
  return std::sqrt(error / size);
}

TEST_P(FamiliesTest, ExactLogitsMatchPyTorch) {
  const int64_t vocab = model_->config().vocab_size;
  std::vector<float> logits;
  ASSERT_OK(ExactLogits(
      *model_, tokens_, [&](int, int64_t first, int64_t rows, const float* x) {
        EXPECT_EQ(first * vocab, static_cast<int64_t>(logits.size()));
        logits.insert(logits.end(), x, x + rows * vocab);
        return absl::OkStatus();
      }));
  EXPECT_LT(LogitsError(golden_, logits, vocab), 2e-5);
  for (size_t t = 0; t < tokens_.size(); ++t) {
    const float* row = logits.data() + t * vocab;
    EXPECT_EQ(std::max_element(row, row + vocab) - row, golden_["top"][t]);
  }
}

TEST_P(FamiliesTest, CachedLogitsMatchPyTorchButForHalfKeysAndValues) {
  const auto cache = testing::FullPrecisionCache(*model_);
  const std::vector<float> logits =
      testing::Logits(*model_, {{.tokens = tokens_, .cache = cache.get()}})[0];
  // Rounding to half is 2^-11 of an element at most; attention and two or three
  // layers bring it to the logits.
  EXPECT_LT(LogitsError(golden_, logits, model_->config().vocab_size), 2e-3);
}

double Norm(const float* x, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += double{x[i]} * x[i];
  return std::sqrt(sum);
}

TEST_P(FamiliesTest, LossAndGradientsMatchPyTorch) {
  const TraceOptions options = {.signals = {Signal::kKeyStateGradient,
                                            Signal::kValueStateGradient,
                                            Signal::kKeyProjectionGradient,
                                            Signal::kValueProjectionGradient}};
  int layers_seen = 0;
  const auto observe = [&](const LayerTrace& trace) {
    const int64_t heads = int64_t{trace.num_kv_heads} * trace.head_dim;
    const auto expect = [&](const char* name, const float* x, int64_t size) {
      const double expected = golden_[name][trace.layer];
      EXPECT_NEAR(Norm(x, size), expected, 1e-5 * expected)
          << name << " of layer " << trace.layer;
    };
    expect("key_projection_gradient", trace.key_projection_gradient,
           heads * trace.hidden_size);
    expect("value_projection_gradient", trace.value_projection_gradient,
           heads * trace.hidden_size);
    expect("key_state_gradient", trace.key_state_gradient,
           trace.num_tokens * heads);
    expect("value_state_gradient", trace.value_state_gradient,
           trace.num_tokens * heads);
    ++layers_seen;
    return absl::OkStatus();
  };
  ASSERT_OK_AND_ASSIGN(const double loss,
                       TraceLayers(*model_, tokens_, options, observe));
  EXPECT_NEAR(loss, golden_["loss"], 1e-6);
  EXPECT_EQ(layers_seen, model_->config().num_layers);
}

INSTANTIATE_TEST_SUITE_P(All, FamiliesTest,
                         ::testing::Values("llama3_rope", "llama3_rope_gguf",
                                           "llama_linear", "llama_linear_gguf",
                                           "llama_yarn", "llama_yarn_gguf",
                                           "mistral", "mistral_gguf", "qwen2",
                                           "qwen2_gguf", "qwen3", "qwen3_gguf"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace kvmix
