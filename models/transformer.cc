#include "models/transformer.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/attention.h"
#include "kvmix/base/status_macros.h"
#include "models/aligned_buffer.h"
#include "models/layer_forward.h"
#include "models/ops.h"
#include "models/transformer_weights.h"

namespace kvmix {
namespace {

// Rows that pass a layer's matrix products together: bounds what a long prompt
// needs beside its hidden states.
constexpr int64_t kRowTile = 512;
// Logits are made in tiles of about 8 MiB: enough rows to be worth a pass over
// the matrix, and little beside the weights of the smallest model.
constexpr int64_t kLogitTileFloats = int64_t{2} << 20;

struct Tensor {
  std::string name;
  int64_t rows;
};

// Where weights come from and go to.
struct Loader {
  const WeightSource& weights;
  ComputeType compute;
  std::shared_ptr<WeightArena> arena;
  ThreadPool& threads;
};

// Room for every matrix of `weights`.
std::shared_ptr<WeightArena> MakeArena(const WeightSource& weights,
                                       ComputeType compute) {
  int64_t bytes = 0;
  for (const TensorInfo& info : weights.tensors()) {
    if (info.shape.size() != 2) continue;
    bytes += LinearLayer::ArenaBytes(compute, info.shape[1],
                                     {{info.shape[0], info.type}});
  }
  return std::make_shared<WeightArena>(bytes);
}

// One layer of the rows of several tensors, one below the other. `biases` is
// empty or has one name per tensor.
absl::StatusOr<std::unique_ptr<LinearLayer>> LoadLinear(
    const Loader& loader, int64_t num_inputs,
    const std::vector<Tensor>& tensors,
    const std::vector<std::string>& biases) {
  const WeightSource& weights = loader.weights;
  std::vector<LinearLayer::Part> parts;
  for (const Tensor& tensor : tensors) {
    KVMIX_ASSIGN_OR_RETURN(const TensorInfo* const info,
                           weights.Find(tensor.name));
    KVMIX_RETURN_IF_ERROR(CheckShape(*info, {tensor.rows, num_inputs}));
    parts.push_back({.num_outputs = tensor.rows, .stored = info->type});
  }
  auto layer = std::make_unique<LinearLayer>(loader.compute, num_inputs, parts,
                                             loader.arena);
  int64_t first = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t num_rows = tensors[i].rows;
    KVMIX_RETURN_IF_ERROR(
        weights.ReadRows(tensors[i].name, {num_rows, num_inputs},
                         &loader.threads, [&](const WeightSource::Rows& rows) {
                           layer->SetWeightRows(i, rows.first, rows.count,
                                                rows.stored, rows.values);
                         }));
    if (!biases.empty()) {
      std::vector<float> bias(num_rows);
      KVMIX_RETURN_IF_ERROR(
          weights.ReadFloat(biases[i], {num_rows}, bias.data()));
      layer->SetBias(first, num_rows, bias.data());
    }
    first += num_rows;
  }
  return layer;
}

absl::Status LoadVector(const std::string& name, int64_t size,
                        const WeightSource& weights, std::vector<float>& out) {
  out.resize(size);
  return weights.ReadFloat(name, {size}, out.data());
}

absl::StatusOr<Transformer::Weights::Layer> LoadLayer(int index,
                                                      const ModelConfig& config,
                                                      const Loader& loader) {
  const WeightSource& weights = loader.weights;
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  const std::string attention = prefix + "self_attn.";
  const std::string mlp = prefix + "mlp.";
  const int64_t hidden = config.hidden_size;
  const int64_t q_rows = int64_t{config.num_heads} * config.head_dim;
  const int64_t kv_rows = int64_t{config.num_kv_heads} * config.head_dim;
  Transformer::Weights::Layer layer;
  KVMIX_RETURN_IF_ERROR(LoadVector(prefix + "input_layernorm.weight", hidden,
                                   weights, layer.input_norm));
  KVMIX_RETURN_IF_ERROR(LoadVector(prefix + "post_attention_layernorm.weight",
                                   hidden, weights, layer.post_attention_norm));
  if (config.qk_norm) {
    KVMIX_RETURN_IF_ERROR(LoadVector(attention + "q_norm.weight",
                                     config.head_dim, weights,
                                     layer.query_norm));
    KVMIX_RETURN_IF_ERROR(LoadVector(attention + "k_norm.weight",
                                     config.head_dim, weights, layer.key_norm));
  }
  std::vector<std::string> biases;
  if (config.qkv_bias) {
    biases = {attention + "q_proj.bias", attention + "k_proj.bias",
              attention + "v_proj.bias"};
  }
  KVMIX_ASSIGN_OR_RETURN(layer.qkv,
                         LoadLinear(loader, hidden,
                                    {{attention + "q_proj.weight", q_rows},
                                     {attention + "k_proj.weight", kv_rows},
                                     {attention + "v_proj.weight", kv_rows}},
                                    biases));
  KVMIX_ASSIGN_OR_RETURN(
      layer.output,
      LoadLinear(loader, q_rows, {{attention + "o_proj.weight", hidden}}, {}));
  KVMIX_ASSIGN_OR_RETURN(
      layer.gate_up,
      LoadLinear(loader, hidden,
                 {{mlp + "gate_proj.weight", config.intermediate_size},
                  {mlp + "up_proj.weight", config.intermediate_size}},
                 {}));
  KVMIX_ASSIGN_OR_RETURN(layer.down,
                         LoadLinear(loader, config.intermediate_size,
                                    {{mlp + "down_proj.weight", hidden}}, {}));
  return layer;
}

}  // namespace

struct Transformer::State {
  State(const ModelConfig& model_config, const RuntimeOptions& options)
      : config(model_config),
        arithmetic(options.attention),
        q_size(int64_t{config.num_heads} * config.head_dim),
        kv_size(int64_t{config.num_kv_heads} * config.head_dim),
        threads(options.num_threads),
        weights{.rope = Rope(config),
                .key_rotation = MakeKeyRotation(config),
                .layers = {},
                .final_norm = {},
                .embedding = nullptr,
                .lm_head = nullptr} {}

  absl::Status Load(const WeightSource& source, ComputeType compute);
  absl::Status Validate(absl::Span<const Chunk> batch) const;
  void Start(absl::Span<const Chunk> batch);
  absl::Status RunLayer(int index, absl::Span<const Chunk> batch);
  void ProjectQkv(const Weights::Layer& layer);
  void AddAttentionAndMlp(const Weights::Layer& layer);
  absl::Status MakeLogits(absl::Span<const Chunk> batch,
                          const LogitsConsumer& consume);
  // body(first row, number of rows) for every tile of kRowTile rows.
  template <class Body>
  void ForEachTile(const Body& body) {
    for (int64_t row = 0; row < num_rows; row += kRowTile)
      body(row, std::min(kRowTile, num_rows - row));
  }
  const ModelConfig config;
  const AttentionArithmetic arithmetic;
  const int64_t q_size;   // H D
  const int64_t kv_size;  // G D
  ThreadPool threads;
  Weights weights;

  // A row of logits to be made.
  struct WantedRow {
    int chunk;
    int64_t token;
    int64_t row;
  };

  // Memory of a pass, kept for the next: a decode step allocates nothing.
  std::vector<TokenAt> tokens;
  std::vector<AttentionItem> items;
  std::vector<WantedRow> wanted;
  // Activations of the pass that runs; row r is a token, the chunks' tokens one
  // after the other.
  int64_t num_rows = 0;
  AlignedBuffer hidden;     // [rows, C]
  AlignedBuffer cos, sin;   // [rows, D / 2]
  AlignedBuffer queries;    // [rows, H, D]
  AlignedBuffer keys;       // [rows, G, D]
  AlignedBuffer values;     // [rows, G, D]
  AlignedBuffer attended;   // [rows, H, D]
  AlignedBuffer normed;     // [tile, C]
  AlignedBuffer projected;  // [tile, (H + 2 G) D or C]
  AlignedBuffer gate_up;    // [tile, 2 I]
  AlignedBuffer activated;  // [tile, I]
  AlignedBuffer logits;     // [logit tile, vocab]
};

absl::Status Transformer::State::Load(const WeightSource& source,
                                      ComputeType compute) {
  const Loader loader = {.weights = source,
                         .compute = compute,
                         .arena = MakeArena(source, compute),
                         .threads = threads};
  KVMIX_ASSIGN_OR_RETURN(
      weights.embedding,
      LoadLinear(loader, config.hidden_size,
                 {{"model.embed_tokens.weight", config.vocab_size}}, {}));
  weights.lm_head = weights.embedding;
  if (!config.tie_embeddings) {
    KVMIX_ASSIGN_OR_RETURN(
        weights.lm_head,
        LoadLinear(loader, config.hidden_size,
                   {{"lm_head.weight", config.vocab_size}}, {}));
  }
  KVMIX_RETURN_IF_ERROR(LoadVector("model.norm.weight", config.hidden_size,
                                   source, weights.final_norm));
  for (int i = 0; i < config.num_layers; ++i) {
    KVMIX_ASSIGN_OR_RETURN(Weights::Layer layer, LoadLayer(i, config, loader));
    weights.layers.push_back(std::move(layer));
  }
  return absl::OkStatus();
}

absl::Status Transformer::State::Validate(absl::Span<const Chunk> batch) const {
  for (size_t i = 0; i < batch.size(); ++i) {
    const Chunk& chunk = batch[i];
    if (chunk.cache == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("batch[", i, "].cache is null"));
    }
    if (chunk.tokens.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "batch[", i, "].tokens is empty but must hold at least one token"));
    }
    for (size_t j = 0; j < i; ++j) {
      if (batch[j].cache == chunk.cache) {
        return absl::InvalidArgumentError(
            absl::StrCat("batch[", i, "].cache is also that of batch[", j,
                         "]; give each sequence its own"));
      }
    }
    const CacheShape& shape = chunk.cache->shape();
    if (shape.num_layers != config.num_layers ||
        shape.num_kv_heads != config.num_kv_heads ||
        shape.head_dim != config.head_dim) {
      return absl::InvalidArgumentError(absl::StrCat(
          "batch[", i, "].cache is of ", shape.num_layers, " layers x ",
          shape.num_kv_heads, " KV heads x ", shape.head_dim,
          " channels but the model has ", config.num_layers, " x ",
          config.num_kv_heads, " x ", config.head_dim));
    }
    if (config.sliding_window > 0 && !chunk.cache->keeps_all_tokens()) {
      return absl::UnimplementedError(absl::StrCat(
          "batch[", i, "].cache has an eviction policy but the model attends ",
          "to a sliding window of ", config.sliding_window,
          " tokens; use eviction_policy \"keep_all\""));
    }
    const int64_t past = chunk.cache->num_tokens(0);
    for (int layer = 1; layer < config.num_layers; ++layer) {
      if (chunk.cache->num_tokens(layer) != past) {
        return absl::FailedPreconditionError(absl::StrCat(
            "batch[", i, "].cache holds ", past, " tokens in layer 0 and ",
            chunk.cache->num_tokens(layer), " in layer ", layer,
            ": a pass over it failed; start the sequence again with a new "
            "cache"));
      }
    }
    const int64_t length = past + static_cast<int64_t>(chunk.tokens.size());
    if (length > config.max_position) {
      return absl::OutOfRangeError(absl::StrCat(
          "batch[", i, "] would be ", length, " tokens long (", past,
          " in its cache) but the model's context is ", config.max_position));
    }
    for (size_t t = 0; t < chunk.tokens.size(); ++t) {
      if (chunk.tokens[t] < 0 || chunk.tokens[t] >= config.vocab_size) {
        return absl::InvalidArgumentError(
            absl::StrCat("batch[", i, "].tokens[", t, "] is ", chunk.tokens[t],
                         " but must be in [0, ", config.vocab_size, ")"));
      }
    }
  }
  return absl::OkStatus();
}

void Transformer::State::Start(absl::Span<const Chunk> batch) {
  tokens.clear();
  for (const Chunk& chunk : batch) {
    int64_t position = chunk.cache->num_tokens(0);
    for (const int32_t token : chunk.tokens)
      tokens.push_back({token, position++});
  }
  num_rows = static_cast<int64_t>(tokens.size());
  const int64_t tile = std::min(num_rows, kRowTile);
  const int64_t size = config.hidden_size;
  const int64_t inner = config.intermediate_size;
  hidden.Reserve(num_rows * size);
  cos.Reserve(num_rows * (config.head_dim / 2));
  sin.Reserve(num_rows * (config.head_dim / 2));
  queries.Reserve(num_rows * q_size);
  keys.Reserve(num_rows * kv_size);
  values.Reserve(num_rows * kv_size);
  attended.Reserve(num_rows * q_size);
  normed.Reserve(tile * size);
  projected.Reserve(tile * std::max(q_size + 2 * kv_size, size));
  gate_up.Reserve(tile * 2 * inner);
  activated.Reserve(tile * inner);
  Embed(weights, tokens, hidden.get(), cos.get(), sin.get(), threads);
}

void Transformer::State::ProjectQkv(const Weights::Layer& layer) {
  const int64_t half = config.head_dim / 2;
  ForEachTile([&](int64_t first, int64_t count) {
    NormRows(hidden.get() + first * config.hidden_size, layer.input_norm,
             config.rms_norm_eps, count, normed.get(), threads);
    ProjectHeads(config, layer, normed.get(), cos.get() + first * half,
                 sin.get() + first * half, count, projected.get(),
                 queries.get() + first * q_size, keys.get() + first * kv_size,
                 values.get() + first * kv_size, threads);
  });
}

void Transformer::State::AddAttentionAndMlp(const Weights::Layer& layer) {
  ForEachTile([&](int64_t first, int64_t count) {
    float* rows = hidden.get() + first * config.hidden_size;
    AddProjection(*layer.output, attended.get() + first * q_size, count,
                  projected.get(), rows, threads);
    NormRows(rows, layer.post_attention_norm, config.rms_norm_eps, count,
             normed.get(), threads);
    layer.gate_up->Forward(normed.get(), count, gate_up.get(), threads);
    Activate(gate_up.get(), count, config.intermediate_size, activated.get(),
             threads);
    AddProjection(*layer.down, activated.get(), count, projected.get(), rows,
                  threads);
  });
}

absl::Status Transformer::State::RunLayer(int index,
                                          absl::Span<const Chunk> batch) {
  const Weights::Layer& layer = weights.layers[index];
  ProjectQkv(layer);
  items.clear();
  int64_t row = 0;
  for (const Chunk& chunk : batch) {
    const int64_t count = static_cast<int64_t>(chunk.tokens.size());
    KVMIX_RETURN_IF_ERROR(chunk.cache->Append(index, count,
                                              keys.get() + row * kv_size,
                                              values.get() + row * kv_size));
    items.push_back({.cache = chunk.cache,
                     .num_tokens = count,
                     .queries = queries.get() + row * q_size,
                     .out = attended.get() + row * q_size});
    row += count;
  }
  Attention(index, items,
            {.num_heads = config.num_heads,
             .scale = AttentionScale(config),
             .sliding_window = config.sliding_window,
             .arithmetic = arithmetic},
            threads);
  for (size_t i = 0; i < batch.size(); ++i) {
    KVMIX_RETURN_IF_ERROR(batch[i].cache->Observe(
        index, items[i].queries, config.num_heads, AttentionScale(config)));
    KVMIX_RETURN_IF_ERROR(batch[i].cache->FinishChunk(index));
  }
  AddAttentionAndMlp(layer);
  return absl::OkStatus();
}

absl::Status Transformer::State::MakeLogits(absl::Span<const Chunk> batch,
                                            const LogitsConsumer& consume) {
  wanted.clear();
  int64_t row = 0;
  for (size_t i = 0; i < batch.size(); ++i) {
    const int64_t count = static_cast<int64_t>(batch[i].tokens.size());
    int64_t first = 0;
    if (batch[i].logits == WantLogits::kLast) first = count - 1;
    if (batch[i].logits == WantLogits::kNone) first = count;
    for (int64_t t = first; t < count; ++t)
      wanted.push_back({static_cast<int>(i), t, row + t});
    row += count;
  }
  const int64_t size = config.hidden_size;
  const int64_t vocab = config.vocab_size;
  const int64_t total = static_cast<int64_t>(wanted.size());
  const int64_t tile =
      std::clamp<int64_t>(kLogitTileFloats / vocab / 12 * 12, 1, kRowTile);
  for (int64_t first = 0; first < total; first += tile) {
    const int64_t count = std::min(tile, total - first);
    normed.Reserve(count * size);
    logits.Reserve(count * vocab);
    ForEachRow(count, threads, [&](int64_t r) {
      RmsNorm(hidden.get() + wanted[first + r].row * size,
              weights.final_norm.data(), config.rms_norm_eps, size,
              normed.get() + r * size);
    });
    weights.lm_head->Forward(normed.get(), count, logits.get(), threads);
    for (int64_t r = 0; r < count;) {
      const WantedRow& start = wanted[first + r];
      int64_t end = r + 1;
      while (end < count && wanted[first + end].chunk == start.chunk) ++end;
      KVMIX_RETURN_IF_ERROR(
          consume(start.chunk, start.token, end - r, logits.get() + r * vocab));
      r = end;
    }
  }
  return absl::OkStatus();
}

Transformer::Transformer(std::unique_ptr<State> state)
    : state_(std::move(state)) {}
Transformer::~Transformer() = default;

absl::StatusOr<std::unique_ptr<Transformer>> Transformer::Load(
    const ModelConfig& config, const WeightSource& weights,
    const RuntimeOptions& options) {
  KVMIX_RETURN_IF_ERROR(Validate(config));
  if (options.num_threads < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "num_threads is ", options.num_threads, " but must be at least 0"));
  }
  auto state = std::make_unique<State>(config, options);
  KVMIX_RETURN_IF_ERROR(state->Load(weights, options.compute));
  return std::unique_ptr<Transformer>(new Transformer(std::move(state)));
}

const ModelConfig& Transformer::config() const { return state_->config; }

CacheShape Transformer::cache_shape() const {
  return {.num_layers = config().num_layers,
          .num_kv_heads = config().num_kv_heads,
          .head_dim = config().head_dim,
          .key_rotation = weights().key_rotation};
}

int64_t Transformer::weight_bytes() const {
  const Weights& w = weights();
  int64_t bytes = w.embedding->bytes();
  if (w.lm_head != w.embedding) bytes += w.lm_head->bytes();
  int64_t floats = static_cast<int64_t>(w.final_norm.size());
  for (const Weights::Layer& layer : w.layers) {
    bytes += layer.qkv->bytes() + layer.output->bytes() +
             layer.gate_up->bytes() + layer.down->bytes();
    floats += static_cast<int64_t>(
        layer.input_norm.size() + layer.query_norm.size() +
        layer.key_norm.size() + layer.post_attention_norm.size());
  }
  return bytes + floats * static_cast<int64_t>(sizeof(float));
}

ThreadPool& Transformer::threads() { return state_->threads; }
const Transformer::Weights& Transformer::weights() const {
  return state_->weights;
}

absl::Status Transformer::Forward(absl::Span<const Chunk> batch,
                                  const LogitsConsumer& consume) {
  KVMIX_RETURN_IF_ERROR(state_->Validate(batch));
  state_->Start(batch);
  for (int i = 0; i < config().num_layers; ++i) {
    KVMIX_RETURN_IF_ERROR(
        AddContext(state_->RunLayer(i, batch), absl::StrCat("layer ", i)));
  }
  return state_->MakeLogits(batch, consume);
}

}  // namespace kvmix
