#include "models/random_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "kvmix/base/half.h"
#include "kvmix/base/random.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

struct Shape {
  absl::string_view name;
  int num_layers, hidden_size, num_heads, num_kv_heads, head_dim;
  int intermediate_size, vocab_size;
  bool tie_embeddings;
  float rope_theta;
};
constexpr Shape kShapes[] = {
    {"135m", 30, 576, 9, 3, 64, 1536, 49152, true, 100000},
    {"1b", 22, 2048, 32, 4, 64, 5632, 32000, false, 10000},
    {"8b-layer", 1, 4096, 32, 8, 128, 14336, 1024, true, 500000},
};

void StoreHalf(float x, uint8_t* out) {
  const uint16_t bits = ToHalf(x).bits;
  std::memcpy(out, &bits, sizeof(bits));
}

// Writes one block of weights of about the given standard deviation.
using BlockMaker = void (*)(CounterRandom& random, float deviation,
                            uint8_t* block);

// Uniform in [-sqrt(3), sqrt(3)) times the deviation.
float Uniform(CounterRandom& random, float deviation) {
  const auto bits = static_cast<int32_t>(random.Next32());
  return static_cast<float>(bits) * 0x1p-31f * 1.7320508f * deviation;
}

void MakeF32(CounterRandom& random, float deviation, uint8_t* block) {
  const float x = Uniform(random, deviation);
  std::memcpy(block, &x, sizeof(x));
}
void MakeF16(CounterRandom& random, float deviation, uint8_t* block) {
  StoreHalf(Uniform(random, deviation), block);
}
void MakeBF16(CounterRandom& random, float deviation, uint8_t* block) {
  const uint16_t bits = ToBFloat16(Uniform(random, deviation)).bits;
  std::memcpy(block, &bits, sizeof(bits));
}

// A block that begins with its scale and has random codes after its header.
template <int kHeaderBytes, int kCodeBytes>
void MakeCodes(CounterRandom& random, float scale, uint8_t* block) {
  StoreHalf(scale, block);
  for (int i = 0; i < kCodeBytes; i += 4) {
    const uint32_t bits = random.Next32();
    std::memcpy(block + kHeaderBytes + i, &bits, sizeof(bits));
  }
}

// Codes uniform in [0, 2^b) have a deviation of 2^b / sqrt(12) steps. Scales
// vary by a factor of up to 1.5 between blocks, and their sign evens out that
// codes of two's complement have a mean of -1/2.
float Scale(CounterRandom& random, float deviation, int bits) {
  const uint32_t draw = random.Next32();
  const float vary = 1 + 0.5f * static_cast<float>(draw >> 8) * 0x1p-24f;
  const float sign = draw % 2 == 0 ? 1.0f : -1.0f;
  return sign * deviation * vary * 3.4641016f / static_cast<float>(1 << bits);
}
void MakeQ8_0(CounterRandom& random, float deviation, uint8_t* block) {
  MakeCodes<2, 32>(random, Scale(random, deviation, 8), block);
}
void MakeQ4_0(CounterRandom& random, float deviation, uint8_t* block) {
  MakeCodes<2, 16>(random, Scale(random, deviation, 4), block);
}
void MakeQ4_1(CounterRandom& random, float deviation, uint8_t* block) {
  const float scale = Scale(random, deviation, 4);
  MakeCodes<4, 16>(random, scale, block);
  StoreHalf(-7.5f * scale, block + 2);
}

absl::StatusOr<BlockMaker> MakerOf(ElementType type) {
  switch (type) {
    case ElementType::kF32:
      return &MakeF32;
    case ElementType::kF16:
      return &MakeF16;
    case ElementType::kBF16:
      return &MakeBF16;
    case ElementType::kQ8_0:
      return &MakeQ8_0;
    case ElementType::kQ4_0:
      return &MakeQ4_0;
    case ElementType::kQ4_1:
      return &MakeQ4_1;
    default:
      return absl::UnimplementedError(absl::StrCat(
          "random weights of type ", LayoutOf(type).name,
          " are not made; use F32, F16, BF16, Q8_0, Q4_0 or Q4_1"));
  }
}

class RandomWeights final : public WeightSource {
 public:
  RandomWeights(BlockMaker make, uint64_t seed) : make_(make), seed_(seed) {}

  absl::Status Add(ExpectedTensor tensor, ElementType type) {
    return AddTensor({std::move(tensor.name), std::move(tensor.shape), type});
  }

 private:
  // More than a block draws from the generator, in fours: rows never overlap.
  static constexpr uint64_t kCountersPerBlock = 16;

  void CopyRows(size_t index, int64_t first_row, int64_t num_rows,
                uint8_t* out) const override {
    const TensorInfo& info = tensors()[index];
    const int64_t columns = info.shape.back();
    if (info.shape.size() == 1) {
      const std::vector<float> ones(columns, 1.0f);
      std::memcpy(out, ones.data(), ones.size() * sizeof(float));
      return;
    }
    const BlockLayout& layout = LayoutOf(info.type);
    const int64_t blocks = columns / layout.elements;
    const float deviation = 1 / std::sqrt(static_cast<float>(columns));
    for (int64_t row = first_row; row < first_row + num_rows; ++row) {
      CounterRandom random(
          seed_, index,
          static_cast<uint64_t>(row * blocks) * kCountersPerBlock);
      for (int64_t b = 0; b < blocks; ++b, out += layout.bytes)
        make_(random, deviation, out);
    }
  }

  const BlockMaker make_;
  const uint64_t seed_;
};

}  // namespace

std::vector<std::string> RandomModelShapes() {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

absl::StatusOr<ModelConfig> RandomModelConfig(absl::string_view shape) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(shape, absl::MaxSplits(':', 1));
  const auto* const found =
      std::find_if(std::begin(kShapes), std::end(kShapes),
                   [&](const Shape& s) { return s.name == parts.first; });
  if (found == std::end(kShapes)) {
    return absl::NotFoundError(
        absl::StrCat("there is no random model of shape \"", shape, "\"; use ",
                     absl::StrJoin(RandomModelShapes(), ", ")));
  }
  ModelConfig config;
  config.family = "llama";
  config.num_layers = found->num_layers;
  if (shape.size() > parts.first.size() &&
      (!absl::SimpleAtoi(parts.second, &config.num_layers) ||
       config.num_layers < 1 || config.num_layers > 1024)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "\"", shape, "\" must have a number of layers from 1 to 1024 behind ",
        "the colon, as ", parts.first, ":12"));
  }
  config.hidden_size = found->hidden_size;
  config.num_heads = found->num_heads;
  config.num_kv_heads = found->num_kv_heads;
  config.head_dim = found->head_dim;
  config.intermediate_size = found->intermediate_size;
  config.vocab_size = found->vocab_size;
  config.rms_norm_eps = 1e-5f;
  config.rope_theta = found->rope_theta;
  config.max_position = 32768;
  config.tie_embeddings = found->tie_embeddings;
  return config;
}

absl::StatusOr<std::unique_ptr<WeightSource>> MakeRandomWeights(
    const ModelConfig& config, ElementType type, uint64_t seed) {
  KVMIX_ASSIGN_OR_RETURN(const BlockMaker make, MakerOf(type));
  const BlockLayout& layout = LayoutOf(type);
  auto weights = std::make_unique<RandomWeights>(make, seed);
  for (ExpectedTensor& tensor : ExpectedTensors(config)) {
    const bool is_matrix = tensor.shape.size() == 2;
    if (is_matrix && tensor.shape.back() % layout.elements != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor \"", tensor.name, "\" has rows of ",
                       tensor.shape.back(), " elements but ", layout.name,
                       " needs a multiple of ", layout.elements));
    }
    KVMIX_RETURN_IF_ERROR(
        weights->Add(std::move(tensor), is_matrix ? type : ElementType::kF32));
  }
  return weights;
}

}  // namespace kvmix
