#include "models/cuda_weights.h"

#include <cstring>
#include <mutex>
#include <string>

#include "absl/strings/str_cat.h"
#include "kvmix/base/check.h"
#include "kvmix/base/half.h"
#include "kvmix/base/status_macros.h"
#include "models/ops.h"

namespace kvmix {
namespace {

constexpr int64_t kAlignment = 256;  // as cudaMalloc's

// Where a tensor's rows go.
struct Placed {
  std::string name;
  std::vector<int64_t> shape;
  int64_t offset;
  CudaNumber type;
};

// Lays tensors out, one after the other.
class Layout {
 public:
  // Returns the offset of the first one; those of one call have no gaps.
  int64_t Place(const std::vector<std::string>& names,
                const std::vector<std::vector<int64_t>>& shapes,
                CudaNumber type) {
    const int64_t first = bytes_;
    for (size_t i = 0; i < names.size(); ++i) {
      tensors_.push_back({names[i], shapes[i], bytes_, type});
      int64_t count = 1;
      for (int64_t n : shapes[i]) count *= n;
      bytes_ += count * BytesOf(type);
    }
    bytes_ = (bytes_ + kAlignment - 1) / kAlignment * kAlignment;
    return first;
  }
  int64_t Reserve(int64_t bytes) {
    const int64_t first = bytes_;
    bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return first;
  }
  int64_t bytes() const { return bytes_; }
  const std::vector<Placed>& tensors() const { return tensors_; }

 private:
  int64_t bytes_ = 0;
  std::vector<Placed> tensors_;
};

// `count` floats as numbers of `type`.
std::vector<uint8_t> Converted(const float* x, int64_t count, CudaNumber type) {
  std::vector<uint8_t> out(count * BytesOf(type));
  for (int64_t i = 0; i < count; ++i) {
    if (type == CudaNumber::kFloat) {
      std::memcpy(out.data() + 4 * i, x + i, 4);
      continue;
    }
    const uint16_t bits =
        type == CudaNumber::kHalf ? ToHalf(x[i]).bits : ToBFloat16(x[i]).bits;
    std::memcpy(out.data() + 2 * i, &bits, 2);
  }
  return out;
}

absl::Status Upload(const Placed& tensor, const WeightSource& source,
                    ThreadPool& threads, DeviceMemory& memory) {
  std::mutex mutex;  // one copy at a time; threads decode and convert
  absl::Status status;
  KVMIX_RETURN_IF_ERROR(source.ReadRows(
      tensor.name, tensor.shape, &threads, [&](const WeightSource::Rows& rows) {
        const int64_t width = tensor.shape.back();
        const std::vector<uint8_t> numbers =
            Converted(rows.values, rows.count * width, tensor.type);
        const int64_t at =
            tensor.offset + rows.first * width * BytesOf(tensor.type);
        const std::lock_guard<std::mutex> lock(mutex);
        if (!status.ok()) return;
        status = memory.Upload(numbers.data(),
                               static_cast<int64_t>(numbers.size()), at);
      }));
  return status;
}

// Offsets of a layer's weights; 0 stands for none where a model may have none.
struct LayerOffsets {
  int64_t input_norm, qkv, qkv_bias = 0, query_norm = 0, key_norm = 0, output,
                           post_attention_norm, gate_up, down;
};

LayerOffsets PlaceLayer(int index, const ModelConfig& config, CudaNumber type,
                        Layout& layout) {
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
  const int64_t hidden = config.hidden_size, inner = config.intermediate_size;
  const int64_t q = int64_t{config.num_heads} * config.head_dim;
  const int64_t kv = int64_t{config.num_kv_heads} * config.head_dim;
  const auto vector = [&](const std::string& name, int64_t size) {
    return layout.Place({name}, {{size}}, CudaNumber::kFloat);
  };
  LayerOffsets at;
  at.input_norm = vector(prefix + "input_layernorm.weight", hidden);
  at.post_attention_norm =
      vector(prefix + "post_attention_layernorm.weight", hidden);
  if (config.qk_norm) {
    at.query_norm = vector(attention + "q_norm.weight", config.head_dim);
    at.key_norm = vector(attention + "k_norm.weight", config.head_dim);
  }
  if (config.qkv_bias) {
    at.qkv_bias =
        layout.Place({attention + "q_proj.bias", attention + "k_proj.bias",
                      attention + "v_proj.bias"},
                     {{q}, {kv}, {kv}}, CudaNumber::kFloat);
  }
  at.qkv =
      layout.Place({attention + "q_proj.weight", attention + "k_proj.weight",
                    attention + "v_proj.weight"},
                   {{q, hidden}, {kv, hidden}, {kv, hidden}}, type);
  at.output = layout.Place({attention + "o_proj.weight"}, {{hidden, q}}, type);
  at.gate_up = layout.Place({mlp + "gate_proj.weight", mlp + "up_proj.weight"},
                            {{inner, hidden}, {inner, hidden}}, type);
  at.down = layout.Place({mlp + "down_proj.weight"}, {{hidden, inner}}, type);
  return at;
}

}  // namespace

int64_t BytesOf(CudaNumber type) { return type == CudaNumber::kFloat ? 4 : 2; }

CudaHeads HeadsOf(const ModelConfig& config, const CudaWeights& weights,
                  const CudaWeights::Layer& layer) {
  return {.num_heads = config.num_heads,
          .num_kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim,
          .eps = config.rms_norm_eps,
          .bias = layer.qkv_bias,
          .query_norm = layer.query_norm,
          .key_norm = layer.key_norm,
          .cos = weights.cos,
          .sin = weights.sin};
}

absl::StatusOr<CudaWeights> LoadCudaWeights(const ModelConfig& config,
                                            const WeightSource& source,
                                            CudaNumber type,
                                            ThreadPool& threads) {
  Layout layout;
  const std::vector<int64_t> vocab_shape = {config.vocab_size,
                                            config.hidden_size};
  // First, so that no optional vector is at offset 0.
  const int64_t embedding =
      layout.Place({"model.embed_tokens.weight"}, {vocab_shape}, type);
  int64_t lm_head = embedding;
  if (!config.tie_embeddings)
    lm_head = layout.Place({"lm_head.weight"}, {vocab_shape}, type);
  const int64_t final_norm = layout.Place(
      {"model.norm.weight"}, {{config.hidden_size}}, CudaNumber::kFloat);
  std::vector<LayerOffsets> offsets;
  for (int i = 0; i < config.num_layers; ++i)
    offsets.push_back(PlaceLayer(i, config, type, layout));
  const int64_t half = config.head_dim / 2;
  const int64_t angle_bytes = config.max_position * half * 4;
  const int64_t cos = layout.Reserve(angle_bytes);
  const int64_t sin = layout.Reserve(angle_bytes);

  CudaWeights weights;
  weights.type = type;
  KVMIX_ASSIGN_OR_RETURN(weights.memory,
                         DeviceMemory::Allocate(layout.bytes(), "weights"));
  for (const Placed& tensor : layout.tensors())
    KVMIX_RETURN_IF_ERROR(Upload(tensor, source, threads, weights.memory));
  const Rope rope(config);
  std::vector<float> c(config.max_position * half), s(c.size());
  threads.ParallelFor(config.max_position, [&](int64_t p, int) {
    rope.Angles(p, c.data() + p * half, s.data() + p * half);
  });
  KVMIX_RETURN_IF_ERROR(weights.memory.Upload(c.data(), angle_bytes, cos));
  KVMIX_RETURN_IF_ERROR(weights.memory.Upload(s.data(), angle_bytes, sin));

  const char* base = weights.memory.as<char>();
  const auto floats = [base](int64_t offset) {
    return offset == 0 ? nullptr
                       : reinterpret_cast<const float*>(base + offset);
  };
  weights.embedding = base + embedding;
  weights.lm_head = base + lm_head;
  weights.final_norm = floats(final_norm);
  weights.cos = floats(cos);
  weights.sin = floats(sin);
  for (const LayerOffsets& at : offsets) {
    weights.layers.push_back(
        {.input_norm = floats(at.input_norm),
         .qkv = base + at.qkv,
         .qkv_bias = floats(at.qkv_bias),
         .query_norm = floats(at.query_norm),
         .key_norm = floats(at.key_norm),
         .output = base + at.output,
         .post_attention_norm = floats(at.post_attention_norm),
         .gate_up = base + at.gate_up,
         .down = base + at.down});
  }
  return weights;
}

}  // namespace kvmix
