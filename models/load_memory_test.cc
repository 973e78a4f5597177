// Loading and running a model takes at most 1.2 times the memory of its
// weights, its cache and a chunk's activations: no tensor is ever in memory
// twice.
//
// A child process loads a model file of 83 MB and runs a prompt; the kernel's
// high-water mark of its resident memory is compared with what it should need.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_matchers.h"
#include "models/model_files.h"
#include "models/random_model.h"
#include "models/test_model.h"
#include "models/transformer.h"

namespace kvmix::testing {
namespace {

constexpr int64_t kPrompt = 256;

// Two matrices of 41 MB, as large beside the rest as a vocabulary gets.
ModelConfig LargeVocabulary() {
  ModelConfig config = SmallConfig();
  config.num_layers = 2;
  config.hidden_size = 256;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 64;
  config.intermediate_size = 512;
  config.vocab_size = 80000;
  return config;
}

// A folder with the model in Hugging Face's layout, weights in BF16.
std::string WriteModel(const ModelConfig& config) {
  const std::string folder = absl::StrCat(::testing::TempDir(), "/large_model");
  EXPECT_EQ(std::system(absl::StrCat("mkdir -p ", folder).c_str()), 0);
  EXPECT_OK(WriteFileAtomically(
      folder + "/config.json",
      absl::StrCat(
          R"({"model_type": "llama", "hidden_act": "silu",)",
          R"("num_hidden_layers": )", config.num_layers, R"(, "hidden_size": )",
          config.hidden_size, R"(, "num_attention_heads": )", config.num_heads,
          R"(, "num_key_value_heads": )", config.num_kv_heads,
          R"(, "head_dim": )", config.head_dim, R"(, "intermediate_size": )",
          config.intermediate_size, R"(, "vocab_size": )", config.vocab_size,
          R"(, "max_position_embeddings": )", config.max_position,
          R"(, "rms_norm_eps": 1e-5, "rope_theta": 10000})")));
  // Header first, then every tensor's bytes.
  std::string header = "{", data;
  const auto weights = *MakeRandomWeights(config, ElementType::kBF16, 1);
  for (const TensorInfo& info : weights->tensors()) {
    const size_t begin = data.size();
    data.resize(begin + *CountElements(info.shape) * LayoutOf(info.type).bytes);
    const int64_t row_bytes = info.shape.back() * LayoutOf(info.type).bytes;
    EXPECT_OK(weights->ReadRows(
        info.name, info.shape, nullptr, [&](const WeightSource::Rows& rows) {
          std::copy_n(reinterpret_cast<const char*>(rows.stored),
                      rows.count * row_bytes,
                      data.data() + begin + rows.first * row_bytes);
        }));
    absl::StrAppend(&header, header.size() > 1 ? "," : "", "\"", info.name,
                    "\":{\"dtype\":\"", LayoutOf(info.type).name,
                    "\",\"shape\":", ShapeText(info.shape),
                    ",\"data_offsets\":[", begin, ",", data.size(), "]}");
  }
  header += "}";
  const uint64_t length = header.size();
  std::ofstream file(folder + "/model.safetensors", std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), sizeof(length));
  file << header << data;
  file.close();
  EXPECT_TRUE(file.good());
  return folder;
}

// A line of /proc/self/status, in bytes.
int64_t StatusBytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (absl::StartsWith(line, key + ":"))
      return std::stoll(line.substr(key.size() + 1)) * 1024;
  }
  return -1;
}

struct Memory {
  int64_t before;  // resident when the child began
  int64_t peak;
  int64_t weights;
  int64_t cache;
};

// In the child: what LoadAndRun measures goes to `out`.
bool LoadAndRun(const std::string& folder, ComputeType compute, int out) {
  Memory memory = {};
  memory.before = StatusBytes("VmRSS");
  const auto files = OpenModel(folder);
  if (!files.ok()) return false;
  const auto model = Transformer::Load(files->config, *files->weights,
                                       {.num_threads = 2, .compute = compute});
  if (!model.ok()) return false;
  const auto cache = FullPrecisionCache(**model);
  const auto tokens = RandomTokens((*model)->config(), kPrompt);
  const absl::Status status = (*model)->Forward(
      {{.tokens = tokens, .cache = cache.get(), .logits = WantLogits::kAll}},
      [](int, int64_t, int64_t, const float*) { return absl::OkStatus(); });
  if (!status.ok()) return false;
  memory.peak = StatusBytes("VmHWM");
  memory.weights = (*model)->weight_bytes();
  memory.cache = cache->ledger().total();
  return write(out, &memory, sizeof(memory)) == sizeof(memory);
}

Memory InAChild(const std::string& folder, ComputeType compute) {
  Memory memory = {};
  int ends[2];
  EXPECT_EQ(pipe(ends), 0);
  const pid_t child = fork();
  if (child == 0) _exit(LoadAndRun(folder, compute, ends[1]) ? 0 : 1);
  close(ends[1]);
  EXPECT_EQ(read(ends[0], &memory, sizeof(memory)),
            static_cast<ssize_t>(sizeof(memory)));
  close(ends[0]);
  int status = 1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  return memory;
}

TEST(LoadMemoryTest, NoTensorIsInMemoryTwice) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers keep memory of their own";
#endif
  const ModelConfig config = LargeVocabulary();
  const std::string folder = WriteModel(config);
  // Floats of a row: hidden states, queries, keys, values, attended, normed,
  // projected, gate and up, activated; and a tile of logits.
  const int64_t row =
      3 * config.hidden_size + 4 * config.num_heads * config.head_dim +
      4 * config.num_kv_heads * config.head_dim + 3 * config.intermediate_size;
  const int64_t activations = 4 * kPrompt * row + (int64_t{8} << 20);
  for (const ComputeType compute :
       {ComputeType::kFloat32, ComputeType::kBFloat16, ComputeType::kInt8}) {
    const Memory memory = InAChild(folder, compute);
    EXPECT_GT(memory.weights, 40e6);
    EXPECT_LE(
        static_cast<double>(memory.peak - memory.before),
        1.2 * static_cast<double>(memory.weights + memory.cache + activations))
        << ComputeTypeName(compute) << ": weights " << memory.weights
        << ", cache " << memory.cache << ", activations " << activations;
  }
}

}  // namespace
}  // namespace kvmix::testing
