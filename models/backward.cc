#include "models/backward.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/base/status_macros.h"
#include "models/aligned_buffer.h"
#include "models/exact_attention.h"
#include "models/layer_forward.h"
#include "models/ops.h"
#include "models/transformer_weights.h"

namespace kvmix {
namespace {

constexpr int64_t kWidth = PanelMatrix::kWidth;

// Rows that pass the MLP together.
constexpr int64_t kRowTile = 512;
// Logits and their gradient are made in tiles of about 32 MiB.
constexpr int64_t kLogitTileFloats = int64_t{8} << 20;

// Letters as in transformer_weights.h, T = tokens. An activation x has its
// gradient in dx.
class Tracer {
 public:
  Tracer(Transformer& model, absl::Span<const int32_t> tokens,
         const TraceOptions& options,
         const std::function<absl::Status(const LayerTrace&)>& observe)
      : config_(model.config()),
        weights_(model.weights()),
        threads_(model.threads()),
        tokens_(tokens),
        options_(options),
        signals_(options.signals),
        observe_(observe),
        num_tokens_(static_cast<int64_t>(tokens.size())),
        hidden_size_(config_.hidden_size),
        q_size_(int64_t{config_.num_heads} * config_.head_dim),
        kv_size_(int64_t{config_.num_kv_heads} * config_.head_dim),
        qkv_size_(q_size_ + 2 * kv_size_),
        inner_size_(config_.intermediate_size),
        attention_(config_, num_tokens_, threads_),
        dprojection_(2 * kv_size_ * hidden_size_),
        projections_(2 * kv_size_ * hidden_size_) {}

  absl::StatusOr<double> Run() {
    Start();
    for (int i = 0; i < config_.num_layers; ++i) {
      if (signals_.NeedsGradients()) {
        inputs_.emplace_back(num_tokens_ * hidden_size_);
        std::copy_n(hidden_.get(), num_tokens_ * hidden_size_,
                    inputs_[i].get());
      }
      const Transformer::Weights::Layer& layer = weights_.layers[i];
      RunAttention(layer);
      AddMlp(layer);
      if (!signals_.NeedsGradients()) KVMIX_RETURN_IF_ERROR(Show(i));
    }
    KVMIX_ASSIGN_OR_RETURN(const double loss, Loss());
    if (signals_.NeedsGradients()) {
      for (int i = config_.num_layers - 1; i >= 0; --i)
        KVMIX_RETURN_IF_ERROR(BackwardLayer(i));
    }
    return loss;
  }

  absl::Status Logits(const LogitsConsumer& consume) {
    Start();
    for (const Transformer::Weights::Layer& layer : weights_.layers) {
      RunAttention(layer);
      AddMlp(layer);
    }
    return ForEachLogitTile(
        num_tokens_, [&](int64_t first, int64_t count, const float* logits) {
          return consume(/*chunk=*/0, first, count, logits);
        });
  }

 private:
  void Start() {
    std::vector<TokenAt> tokens;
    for (int64_t t = 0; t < num_tokens_; ++t) tokens.push_back({tokens_[t], t});
    const int64_t half = config_.head_dim / 2;
    const int64_t tile = std::min(num_tokens_, kRowTile);
    hidden_.Reserve(num_tokens_ * hidden_size_);
    cos_.Reserve(num_tokens_ * half);
    sin_.Reserve(num_tokens_ * half);
    normed_.Reserve(num_tokens_ * hidden_size_);
    dnormed_.Reserve(num_tokens_ * hidden_size_);
    qkv_.Reserve(num_tokens_ * qkv_size_);
    queries_.Reserve(num_tokens_ * q_size_);
    keys_.Reserve(num_tokens_ * kv_size_);
    values_.Reserve(num_tokens_ * kv_size_);
    attended_.Reserve(num_tokens_ * q_size_);
    tile_normed_.Reserve(tile * hidden_size_);
    gate_up_.Reserve(tile * 2 * inner_size_);
    activated_.Reserve(tile * inner_size_);
    Embed(weights_, tokens, hidden_.get(), cos_.get(), sin_.get(), threads_);
  }

  // From the layer's input hidden_: normed_, qkv_ (as projected), queries_,
  // keys_, values_, attended_; then adds the attention's output to hidden_.
  void RunAttention(const Transformer::Weights::Layer& layer) {
    NormRows(hidden_.get(), layer.input_norm, config_.rms_norm_eps, num_tokens_,
             normed_.get(), threads_);
    ProjectHeads(config_, layer, normed_.get(), cos_.get(), sin_.get(),
                 num_tokens_, qkv_.get(), queries_.get(), keys_.get(),
                 values_.get(), threads_);
    attention_.Forward(queries_.get(), keys_.get(), values_.get(),
                       attended_.get());
    AddProjection(*layer.output, attended_.get(), num_tokens_,
                  /*scratch=*/dnormed_.get(), hidden_.get(), threads_);
  }

  // gate_up_ of rows [first, first + count) of hidden_, the attention's output.
  void RunGateUp(const Transformer::Weights::Layer& layer, int64_t first,
                 int64_t count) {
    NormRows(hidden_.get() + first * hidden_size_, layer.post_attention_norm,
             config_.rms_norm_eps, count, tile_normed_.get(), threads_);
    layer.gate_up->Forward(tile_normed_.get(), count, gate_up_.get(), threads_);
  }

  void AddMlp(const Transformer::Weights::Layer& layer) {
    ForEachTile([&](int64_t first, int64_t count) {
      RunGateUp(layer, first, count);
      Activate(gate_up_.get(), count, inner_size_, activated_.get(), threads_);
      AddProjection(*layer.down, activated_.get(), count,
                    /*scratch=*/tile_normed_.get(),
                    hidden_.get() + first * hidden_size_, threads_);
    });
  }

  // body(first row, number of rows) for every tile of kRowTile rows.
  template <class Body>
  void ForEachTile(const Body& body) {
    for (int64_t first = 0; first < num_tokens_; first += kRowTile)
      body(first, std::min(kRowTile, num_tokens_ - first));
  }

  // body(first row, number of rows, logits) -> absl::Status for tiles of the
  // first num_rows rows of hidden_, the last layer's output.
  template <class Body>
  absl::Status ForEachLogitTile(int64_t num_rows, const Body& body) {
    const int64_t vocab = config_.vocab_size;
    const int64_t tile = std::min(
        num_rows,
        std::clamp<int64_t>(kLogitTileFloats / vocab / 12 * 12, 1, kRowTile));
    AlignedBuffer logits(tile * vocab);
    tile_normed_.Reserve(tile * hidden_size_);
    for (int64_t first = 0; first < num_rows; first += tile) {
      const int64_t count = std::min(tile, num_rows - first);
      NormRows(hidden_.get() + first * hidden_size_, weights_.final_norm,
               config_.rms_norm_eps, count, tile_normed_.get(), threads_);
      weights_.lm_head->Forward(tile_normed_.get(), count, logits.get(),
                                threads_);
      KVMIX_RETURN_IF_ERROR(body(first, count, logits.get()));
    }
    return absl::OkStatus();
  }

  // The mean loss from hidden_; with gradients, dhidden_.
  absl::StatusOr<double> Loss() {
    const bool gradients = signals_.NeedsGradients();
    const int64_t vocab = config_.vocab_size;
    const int64_t num_labels = num_tokens_ - options_.label_shift;
    if (gradients) {
      dhidden_.Reserve(num_tokens_ * hidden_size_);
      std::fill_n(dhidden_.get() + num_labels * hidden_size_,
                  options_.label_shift * hidden_size_, 0.0f);
    }
    std::vector<double> losses(num_labels);
    const auto tile = [&](int64_t first, int64_t count, float* logits) {
      ForEachRow(count, threads_, [&](int64_t r) {
        losses[first + r] =
            CrossEntropyGradient(logits + r * vocab, vocab,
                                 tokens_[first + r + options_.label_shift],
                                 1.0f / static_cast<float>(num_labels));
      });
      if (!gradients) return absl::OkStatus();
      const float* rows = hidden_.get() + first * hidden_size_;
      float* drows = dhidden_.get() + first * hidden_size_;
      weights_.lm_head->InputGradient(logits, count, drows, threads_);
      ForEachRow(count, threads_, [&](int64_t r) {
        float* drow = drows + r * hidden_size_;
        RmsNormGradient(rows + r * hidden_size_, weights_.final_norm.data(),
                        config_.rms_norm_eps, drow, hidden_size_, drow);
      });
      return absl::OkStatus();
    };
    KVMIX_RETURN_IF_ERROR(ForEachLogitTile(num_labels, tile));
    double sum = 0;
    for (const double loss : losses) sum += loss;
    const double loss = sum / static_cast<double>(num_labels);
    KVMIX_RETURN_IF_ERROR(CheckLoss(loss));
    return loss;
  }

  // dhidden_ becomes the gradient of layer i's input, unless i is 0: below the
  // first layer nobody asks.
  absl::Status BackwardLayer(int i) {
    const Transformer::Weights::Layer& layer = weights_.layers[i];
    const float* x = inputs_[i].get();
    std::copy_n(x, num_tokens_ * hidden_size_, hidden_.get());
    RunAttention(layer);
    BackwardMlp(layer);
    const bool last = i == 0;
    BackwardAttention(layer, /*want_dqueries=*/!last);
    BackwardHeads(layer, /*first_head=*/last ? config_.num_heads : 0);
    ProjectionGradients();
    KVMIX_RETURN_IF_ERROR(Show(i));
    if (last) return absl::OkStatus();
    layer.qkv->InputGradient(dqkv_.get(), num_tokens_, dnormed_.get(),
                             threads_);
    ForEachRow(num_tokens_, threads_, [&](int64_t t) {
      float* drow = dnormed_.get() + t * hidden_size_;
      RmsNormGradient(x + t * hidden_size_, layer.input_norm.data(),
                      config_.rms_norm_eps, drow, hidden_size_, drow);
      Add(drow, hidden_size_, dhidden_.get() + t * hidden_size_);
    });
    return absl::OkStatus();
  }

  // dhidden_ of the layer's output becomes that of the attention's.
  void BackwardMlp(const Transformer::Weights::Layer& layer) {
    ForEachTile([&](int64_t first, int64_t count) {
      RunGateUp(layer, first, count);
      float* drows = dhidden_.get() + first * hidden_size_;
      float* dactivated = activated_.get();
      layer.down->InputGradient(drows, count, dactivated, threads_);
      ForEachRow(count, threads_, [&](int64_t r) {
        float* gate = gate_up_.get() + r * 2 * inner_size_;
        float* up = gate + inner_size_;
        SwiGluGradient(gate, up, dactivated + r * inner_size_, inner_size_,
                       gate, up);
      });
      float* dnormed = tile_normed_.get();
      layer.gate_up->InputGradient(gate_up_.get(), count, dnormed, threads_);
      ForEachRow(count, threads_, [&](int64_t r) {
        float* drow = dnormed + r * hidden_size_;
        RmsNormGradient(hidden_.get() + (first + r) * hidden_size_,
                        layer.post_attention_norm.data(), config_.rms_norm_eps,
                        drow, hidden_size_, drow);
        Add(drow, hidden_size_, drows + r * hidden_size_);
      });
    });
  }

  // dqueries_, dkeys_, dvalues_ from dhidden_.
  void BackwardAttention(const Transformer::Weights::Layer& layer,
                         bool want_dqueries) {
    dqueries_.Reserve(num_tokens_ * q_size_);
    dkeys_.Reserve(num_tokens_ * kv_size_);
    dvalues_.Reserve(num_tokens_ * kv_size_);
    float* dattended = attended_.get();
    layer.output->InputGradient(dhidden_.get(), num_tokens_, dattended,
                                threads_);
    attention_.Backward(queries_.get(), dattended,
                        want_dqueries ? dqueries_.get() : nullptr, dkeys_.get(),
                        dvalues_.get());
  }

  // dqkv_, before RoPE and the head norms, from head first_head on: the KV
  // heads follow the query heads.
  void BackwardHeads(const Transformer::Weights::Layer& layer, int first_head) {
    dqkv_.Reserve(num_tokens_ * qkv_size_);
    ForEachRow(num_tokens_, threads_, [&](int64_t t) {
      const float* raw = qkv_.get() + t * qkv_size_;
      float* out = dqkv_.get() + t * qkv_size_;
      if (first_head == 0)
        std::copy_n(dqueries_.get() + t * q_size_, q_size_, out);
      std::copy_n(dkeys_.get() + t * kv_size_, kv_size_, out + q_size_);
      std::copy_n(dvalues_.get() + t * kv_size_, kv_size_,
                  out + q_size_ + kv_size_);
      const int num_rotated = config_.num_heads + config_.num_kv_heads;
      for (int h = first_head; h < num_rotated; ++h) {
        const int64_t offset = int64_t{h} * config_.head_dim;
        RotateBack(out + offset, config_.head_dim, cos(t), sin(t));
        const std::vector<float>& norm =
            h < config_.num_heads ? layer.query_norm : layer.key_norm;
        if (norm.empty()) continue;
        RmsNormGradient(raw + offset, norm.data(), config_.rms_norm_eps,
                        out + offset, config_.head_dim, out + offset);
      }
    });
  }

  // dW_k and dW_v, one below the other, are columns of dqkv_^T times normed_.
  void ProjectionGradients() {
    const bool keys = signals_.Has(Signal::kKeyProjectionGradient);
    const bool values = signals_.Has(Signal::kValueProjectionGradient);
    if (!keys && !values) return;
    const int64_t first = keys ? 0 : kv_size_;
    const int64_t rows = (values ? 2 * kv_size_ : kv_size_) - first;
    normed_rows_.Resize(num_tokens_, hidden_size_);
    normed_rows_.SetRows(0, num_tokens_, normed_.get(), hidden_size_);
    const LeftOperand columns = {dqkv_.get() + q_size_ + first, 1, qkv_size_};
    threads_.ParallelFor(normed_rows_.num_panels(), [&](int64_t p, int) {
      float* out = dprojection_.get() + first * hidden_size_ + p * kWidth;
      for (int64_t r = 0; r < rows; ++r)
        std::fill_n(out + r * hidden_size_, normed_rows_.width(p), 0.0f);
      MultiplyPanel(columns, rows, num_tokens_, normed_rows_.panel(p),
                    normed_rows_.width(p), out, hidden_size_);
    });
  }

  // W_k and W_v, one below the other, as the layer computes with them.
  void CopyProjections(int layer) {
    const LinearLayer& qkv = *weights_.layers[layer].qkv;
    for (int64_t row = 0; row < 2 * kv_size_; ++row)
      qkv.CopyWeightRow(q_size_ + row, projections_.get() + row * hidden_size_);
  }

  absl::Status Show(int layer) {
    if (signals_.Has(Signal::kKeyProjection) ||
        signals_.Has(Signal::kValueProjection))
      CopyProjections(layer);
    LayerTrace trace = EmptyTrace(config_, *weights_.key_rotation, num_tokens_,
                                  options_.prompt, layer);
    const int64_t projection = kv_size_ * hidden_size_;
    const auto set = [&](Signal signal, const float* LayerTrace::*field,
                         const float* data) {
      if (signals_.Has(signal)) trace.*field = data;
    };
    set(Signal::kKeyStates, &LayerTrace::key_states, keys_.get());
    set(Signal::kValueStates, &LayerTrace::value_states, values_.get());
    set(Signal::kKeyStateGradient, &LayerTrace::key_state_gradient,
        dkeys_.get());
    set(Signal::kValueStateGradient, &LayerTrace::value_state_gradient,
        dvalues_.get());
    set(Signal::kKeyProjectionGradient, &LayerTrace::key_projection_gradient,
        dprojection_.get());
    set(Signal::kValueProjectionGradient,
        &LayerTrace::value_projection_gradient,
        dprojection_.get() + projection);
    set(Signal::kQueryStates, &LayerTrace::query_states, queries_.get());
    set(Signal::kKeyProjection, &LayerTrace::key_projection,
        projections_.get());
    set(Signal::kValueProjection, &LayerTrace::value_projection,
        projections_.get() + projection);
    KVMIX_RETURN_IF_ERROR(CheckIsFinite(trace));
    return observe_(trace);
  }

  const float* cos(int64_t t) const {
    return cos_.get() + t * (config_.head_dim / 2);
  }
  const float* sin(int64_t t) const {
    return sin_.get() + t * (config_.head_dim / 2);
  }

  const ModelConfig& config_;
  const Transformer::Weights& weights_;
  ThreadPool& threads_;
  const absl::Span<const int32_t> tokens_;
  const TraceOptions& options_;
  const SignalSet signals_;
  const std::function<absl::Status(const LayerTrace&)>& observe_;
  const int64_t num_tokens_;   // T
  const int64_t hidden_size_;  // C
  const int64_t q_size_;       // H D
  const int64_t kv_size_;      // G D
  const int64_t qkv_size_;     // (H + 2 G) D
  const int64_t inner_size_;   // I
  ExactAttention attention_;

  std::vector<AlignedBuffer> inputs_;              // L times [T, C]
  AlignedBuffer cos_, sin_;                        // [T, D / 2]
  AlignedBuffer hidden_, dhidden_;                 // [T, C]
  AlignedBuffer normed_, dnormed_;                 // [T, C]
  AlignedBuffer qkv_, dqkv_;                       // [T, (H + 2 G) D]
  AlignedBuffer queries_, dqueries_, attended_;    // [T, H D]
  AlignedBuffer keys_, dkeys_, values_, dvalues_;  // [T, G D]
  AlignedBuffer tile_normed_;                      // [tile, C]
  AlignedBuffer gate_up_;                          // [tile, 2 I]
  AlignedBuffer activated_;                        // [tile, I]
  PanelMatrix normed_rows_;                        // [T, C]
  AlignedBuffer dprojection_;                      // [2 G D, C]
  AlignedBuffer projections_;                      // [2 G D, C]
};

absl::Status ValidateTokens(const ModelConfig& config,
                            absl::Span<const int32_t> tokens) {
  const int64_t num_tokens = static_cast<int64_t>(tokens.size());
  if (num_tokens > config.max_position) {
    return absl::OutOfRangeError(absl::StrCat(
        "it has ", num_tokens, " tokens but the model's context is ",
        config.max_position));
  }
  for (int64_t t = 0; t < num_tokens; ++t) {
    if (tokens[t] < 0 || tokens[t] >= config.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", t, " is ", tokens[t], " but must be in [0, ",
                       config.vocab_size, ")"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateTrace(const ModelConfig& config, ComputeType compute,
                           absl::Span<const int32_t> tokens,
                           const TraceOptions& options) {
  const int64_t num_tokens = static_cast<int64_t>(tokens.size());
  if (options.label_shift < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "label_shift is ", options.label_shift, " but must be at least 1"));
  }
  if (num_tokens < options.label_shift + 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prompt ", options.prompt, " has ", num_tokens,
        " tokens but a loss with label_shift ", options.label_shift,
        " needs at least ", options.label_shift + 1));
  }
  KVMIX_RETURN_IF_ERROR(AddContext(ValidateTokens(config, tokens),
                                   absl::StrCat("prompt ", options.prompt)));
  if (options.signals.NeedsGradients() && compute != ComputeType::kFloat32) {
    return absl::FailedPreconditionError(absl::StrCat(
        "gradients need compute: FLOAT32; the model was loaded in ",
        ComputeTypeName(compute)));
  }
  return absl::OkStatus();
}

LayerTrace EmptyTrace(const ModelConfig& config, const KeyRotation& rotation,
                      int64_t num_tokens, int prompt, int layer) {
  LayerTrace trace;
  trace.prompt = prompt;
  trace.layer = layer;
  trace.num_tokens = num_tokens;
  trace.num_heads = config.num_heads;
  trace.sliding_window = config.sliding_window;
  trace.key_rotation = &rotation;
  trace.num_kv_heads = config.num_kv_heads;
  trace.head_dim = config.head_dim;
  trace.hidden_size = config.hidden_size;
  return trace;
}

absl::Status CheckIsFinite(const LayerTrace& trace) {
  const int64_t kv_size = int64_t{trace.num_kv_heads} * trace.head_dim;
  const int64_t states = trace.num_tokens * kv_size;
  const int64_t projection = kv_size * trace.hidden_size;
  const int64_t queries =
      trace.num_tokens * int64_t{trace.num_heads} * trace.head_dim;
  struct Field {
    Signal signal;
    const float* data;
    int64_t size;
  };
  const Field fields[] = {
      {Signal::kKeyStates, trace.key_states, states},
      {Signal::kValueStates, trace.value_states, states},
      {Signal::kKeyStateGradient, trace.key_state_gradient, states},
      {Signal::kValueStateGradient, trace.value_state_gradient, states},
      {Signal::kKeyProjectionGradient, trace.key_projection_gradient,
       projection},
      {Signal::kValueProjectionGradient, trace.value_projection_gradient,
       projection},
      {Signal::kQueryStates, trace.query_states, queries},
      {Signal::kKeyProjection, trace.key_projection, projection},
      {Signal::kValueProjection, trace.value_projection, projection},
  };
  for (const Field& field : fields) {
    for (int64_t i = 0; field.data != nullptr && i < field.size; ++i) {
      if (std::isfinite(field.data[i])) continue;
      return absl::FailedPreconditionError(absl::StrCat(
          "layer ", trace.layer, " ", SignalSet({field.signal}).ToString(), "[",
          i, "] is ", field.data[i],
          ": the model's weights or this prompt overflow its arithmetic"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLoss(double loss) {
  if (std::isfinite(loss)) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "the loss is ", loss,
      ": the model's weights or this prompt overflow its arithmetic"));
}

absl::StatusOr<double> TraceLayers(
    Transformer& model, absl::Span<const int32_t> tokens,
    const TraceOptions& options,
    const std::function<absl::Status(const LayerTrace&)>& observe) {
  KVMIX_RETURN_IF_ERROR(ValidateTrace(
      model.config(), model.weights().lm_head->compute(), tokens, options));
  return Tracer(model, tokens, options, observe).Run();
}

absl::Status ExactLogits(Transformer& model, absl::Span<const int32_t> tokens,
                         const LogitsConsumer& consume) {
  if (tokens.empty()) {
    return absl::InvalidArgumentError("there are no tokens; give at least one");
  }
  KVMIX_RETURN_IF_ERROR(
      AddContext(ValidateTokens(model.config(), tokens), "the text"));
  return Tracer(model, tokens, {}, nullptr).Logits(consume);
}

}  // namespace kvmix
