#include "models/cuda_trace.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/base/device_memory.h"
#include "kvmix/base/status_macros.h"
#include "models/cuda_ops.h"
#include "models/ops.h"

namespace kvmix {
namespace {

constexpr CudaNumber kFloat = CudaNumber::kFloat;
// Logits and their gradient are made in tiles of about 32 MiB.
constexpr int64_t kLogitTileFloats = int64_t{8} << 20;

// Letters as in transformer_weights.h, T = tokens. An activation x has its
// gradient in dx.
class Tracer {
 public:
  Tracer(const ModelConfig& config, const CudaWeights& weights,
         CudaLinear& linear, cudaStream_t stream,
         absl::Span<const int32_t> tokens, const TraceOptions& options,
         const std::function<absl::Status(const LayerTrace&)>& observe)
      : config_(config),
        weights_(weights),
        linear_(linear),
        stream_(stream),
        tokens_(tokens),
        options_(options),
        signals_(options.signals),
        observe_(observe),
        num_tokens_(static_cast<int64_t>(tokens.size())),
        num_labels_(num_tokens_ - options.label_shift),
        hidden_size_(config.hidden_size),
        q_size_(int64_t{config.num_heads} * config.head_dim),
        kv_size_(int64_t{config.num_kv_heads} * config.head_dim),
        qkv_size_(q_size_ + 2 * kv_size_),
        inner_size_(config.intermediate_size),
        logit_tile_(std::clamp<int64_t>(kLogitTileFloats / config.vocab_size, 1,
                                        num_labels_)) {}

  absl::StatusOr<double> Run() {
    KVMIX_RETURN_IF_ERROR(Start());
    const bool gradients = signals_.NeedsGradients();
    for (int i = 0; i < config_.num_layers; ++i) {
      if (gradients)
        KVMIX_RETURN_IF_ERROR(
            Copy(hidden_, num_tokens_ * hidden_size_, Input(i)));
      KVMIX_RETURN_IF_ERROR(RunAttention(weights_.layers[i]));
      KVMIX_RETURN_IF_ERROR(AddMlp(weights_.layers[i]));
      if (!gradients) KVMIX_RETURN_IF_ERROR(Show(i));
    }
    KVMIX_ASSIGN_OR_RETURN(const double loss, Loss());
    for (int i = config_.num_layers - 1; gradients && i >= 0; --i)
      KVMIX_RETURN_IF_ERROR(BackwardLayer(i));
    return loss;
  }

 private:
  float* Input(int layer) const {
    return inputs_ + layer * num_tokens_ * hidden_size_;
  }

  absl::Status Start() {
    const int64_t layers =
        signals_.NeedsGradients() ? int64_t{config_.num_layers} : 0;
    const auto lay_out = [&](DeviceArena& arena) {
      token_ids_ = arena.Take<int32_t>(num_tokens_);
      positions_ = arena.Take<int32_t>(num_tokens_);
      losses_ = arena.Take<float>(num_tokens_);
      inputs_ = arena.Take<float>(layers * num_tokens_ * hidden_size_);
      hidden_ = arena.Take<float>(num_tokens_ * hidden_size_);
      dhidden_ = arena.Take<float>(num_tokens_ * hidden_size_);
      normed_ = arena.Take<float>(num_tokens_ * hidden_size_);
      dnormed_ = arena.Take<float>(num_tokens_ * hidden_size_);
      projected_ = arena.Take<float>(num_tokens_ * qkv_size_);
      qkv_ = arena.Take<float>(num_tokens_ * qkv_size_);
      dqkv_ = arena.Take<float>(num_tokens_ * qkv_size_);
      attended_ = arena.Take<float>(num_tokens_ * q_size_);
      gate_up_ = arena.Take<float>(num_tokens_ * 2 * inner_size_);
      activated_ = arena.Take<float>(num_tokens_ * inner_size_);
      scores_ = arena.Take<float>(num_tokens_ * num_tokens_);
      dscores_ = arena.Take<float>(num_tokens_ * num_tokens_);
      logits_ = arena.Take<float>(logit_tile_ * config_.vocab_size);
      dprojection_ = arena.Take<float>(2 * kv_size_ * hidden_size_);
    };
    KVMIX_ASSIGN_OR_RETURN(
        memory_, DeviceMemory::AllocateFor(
                     lay_out, absl::StrCat("a profile of ", num_tokens_,
                                           " tokens on the device")));
    std::vector<int32_t> positions(num_tokens_);
    for (int64_t t = 0; t < num_tokens_; ++t)
      positions[t] = static_cast<int32_t>(t);
    KVMIX_RETURN_IF_ERROR(
        CudaStatus(cudaMemcpy(token_ids_, tokens_.data(), num_tokens_ * 4,
                              cudaMemcpyHostToDevice),
                   "copy of tokens"));
    KVMIX_RETURN_IF_ERROR(
        CudaStatus(cudaMemcpy(positions_, positions.data(), num_tokens_ * 4,
                              cudaMemcpyHostToDevice),
                   "copy of positions"));
    return Launched(CudaEmbed(weights_.embedding, kFloat, token_ids_,
                              num_tokens_, hidden_size_, hidden_, stream_));
  }

  absl::Status Launched(cudaError_t error) const {
    return CudaStatus(error, "launch of a kernel");
  }
  absl::Status Copy(const float* from, int64_t count, float* to) {
    return CudaStatus(
        cudaMemcpyAsync(to, from, count * 4, cudaMemcpyDeviceToDevice, stream_),
        "copy on the device");
  }
  absl::Status Norm(const float* x, const float* weight, int64_t rows) {
    return Launched(CudaRmsNorm(x, nullptr, weight, config_.rms_norm_eps, rows,
                                hidden_size_, normed_, kFloat, stream_));
  }
  // dx += the gradient of `x` normed, of dnormed_.
  absl::Status AddNormGradient(const float* x, const float* weight,
                               int64_t rows, float* dx) {
    return Launched(CudaRmsNormGradient(x, weight, config_.rms_norm_eps,
                                        dnormed_, rows, hidden_size_, dx,
                                        stream_));
  }
  absl::Status Product(const float* x, const void* weight, int64_t rows,
                       int64_t inputs, int64_t outputs, bool add, float* out) {
    return linear_.Forward(x, weight, kFloat, rows, inputs, outputs, add, out);
  }
  // dx [rows, inputs] = dout [rows, outputs] weight [outputs, inputs].
  absl::Status InputGradient(const float* dout, const void* weight,
                             int64_t rows, int64_t inputs, int64_t outputs,
                             float* dx) {
    return linear_.Multiply({dout, kFloat, outputs}, {weight, kFloat, inputs},
                            rows, inputs, outputs, 1, false, dx, inputs);
  }

  // Where a head's numbers begin in a row of queries, keys and values.
  int64_t QueryAt(int h) const { return int64_t{h} * config_.head_dim; }
  int64_t KeyAt(int h) const {
    return q_size_ +
           h / (config_.num_heads / config_.num_kv_heads) * config_.head_dim;
  }
  int64_t ValueAt(int h) const { return KeyAt(h) + kv_size_; }
  CudaLinear::Matrix Rows(const float* x, bool transposed = false) const {
    return {x, kFloat, qkv_size_, transposed};
  }
  CudaLinear::Matrix Square(const float* x, bool transposed = false) const {
    return {x, kFloat, num_tokens_, transposed};
  }

  // scores_ = the attention weights of head h.
  absl::Status Weigh(int h) {
    KVMIX_RETURN_IF_ERROR(linear_.Multiply(
        Rows(qkv_ + QueryAt(h)), Rows(qkv_ + KeyAt(h), /*transposed=*/true),
        num_tokens_, num_tokens_, config_.head_dim, AttentionScale(config_),
        false, scores_, num_tokens_));
    return Launched(CudaCausalSoftmax(num_tokens_, config_.sliding_window,
                                      scores_, stream_));
  }

  // From the layer's input hidden_: normed_, projected_, qkv_, attended_; then
  // adds the attention's output to hidden_.
  absl::Status RunAttention(const CudaWeights::Layer& layer) {
    KVMIX_RETURN_IF_ERROR(Norm(hidden_, layer.input_norm, num_tokens_));
    KVMIX_RETURN_IF_ERROR(Product(normed_, layer.qkv, num_tokens_, hidden_size_,
                                  qkv_size_, false, projected_));
    KVMIX_RETURN_IF_ERROR(Copy(projected_, num_tokens_ * qkv_size_, qkv_));
    KVMIX_RETURN_IF_ERROR(
        Launched(CudaPrepareHeads(HeadsOf(config_, weights_, layer), positions_,
                                  num_tokens_, qkv_, stream_)));
    for (int h = 0; h < config_.num_heads; ++h) {
      KVMIX_RETURN_IF_ERROR(Weigh(h));
      KVMIX_RETURN_IF_ERROR(
          linear_.Multiply(Square(scores_), Rows(qkv_ + ValueAt(h)),
                           num_tokens_, config_.head_dim, num_tokens_, 1, false,
                           attended_ + QueryAt(h), q_size_));
    }
    return Product(attended_, layer.output, num_tokens_, q_size_, hidden_size_,
                   true, hidden_);
  }

  // gate_up_ of hidden_, the attention's output.
  absl::Status RunGateUp(const CudaWeights::Layer& layer) {
    KVMIX_RETURN_IF_ERROR(
        Norm(hidden_, layer.post_attention_norm, num_tokens_));
    return Product(normed_, layer.gate_up, num_tokens_, hidden_size_,
                   2 * inner_size_, false, gate_up_);
  }

  absl::Status AddMlp(const CudaWeights::Layer& layer) {
    KVMIX_RETURN_IF_ERROR(RunGateUp(layer));
    KVMIX_RETURN_IF_ERROR(Launched(CudaSwiGlu(
        gate_up_, num_tokens_, inner_size_, activated_, kFloat, stream_)));
    return Product(activated_, layer.down, num_tokens_, inner_size_,
                   hidden_size_, true, hidden_);
  }

  // The mean loss from hidden_; with gradients, dhidden_.
  absl::StatusOr<double> Loss() {
    KVMIX_RETURN_IF_ERROR(CudaStatus(
        cudaMemsetAsync(dhidden_, 0, num_tokens_ * hidden_size_ * 4, stream_),
        "clearing of gradients"));
    for (int64_t first = 0; first < num_labels_; first += logit_tile_) {
      const int64_t count = std::min(logit_tile_, num_labels_ - first);
      const float* rows = hidden_ + first * hidden_size_;
      KVMIX_RETURN_IF_ERROR(Norm(rows, weights_.final_norm, count));
      KVMIX_RETURN_IF_ERROR(Product(normed_, weights_.lm_head, count,
                                    hidden_size_, config_.vocab_size, false,
                                    logits_));
      KVMIX_RETURN_IF_ERROR(Launched(CudaCrossEntropyGradient(
          logits_, token_ids_ + first + options_.label_shift, count,
          config_.vocab_size, 1.0f / static_cast<float>(num_labels_),
          losses_ + first, stream_)));
      if (!signals_.NeedsGradients()) continue;
      KVMIX_RETURN_IF_ERROR(InputGradient(logits_, weights_.lm_head, count,
                                          hidden_size_, config_.vocab_size,
                                          dnormed_));
      KVMIX_RETURN_IF_ERROR(AddNormGradient(rows, weights_.final_norm, count,
                                            dhidden_ + first * hidden_size_));
    }
    KVMIX_ASSIGN_OR_RETURN(const std::vector<float> losses,
                           Download(losses_, num_labels_));
    double sum = 0;
    for (const float loss : losses) sum += loss;
    const double loss = sum / static_cast<double>(num_labels_);
    KVMIX_RETURN_IF_ERROR(CheckLoss(loss));
    return loss;
  }

  // dhidden_ becomes the gradient of layer i's input.
  absl::Status BackwardLayer(int i) {
    const CudaWeights::Layer& layer = weights_.layers[i];
    KVMIX_RETURN_IF_ERROR(Copy(Input(i), num_tokens_ * hidden_size_, hidden_));
    KVMIX_RETURN_IF_ERROR(RunAttention(layer));
    KVMIX_RETURN_IF_ERROR(BackwardMlp(layer));
    KVMIX_RETURN_IF_ERROR(BackwardAttention(layer));
    KVMIX_RETURN_IF_ERROR(DownloadStateGradients());
    KVMIX_RETURN_IF_ERROR(Launched(
        CudaPrepareHeadsGradient(HeadsOf(config_, weights_, layer), positions_,
                                 num_tokens_, projected_, dqkv_, stream_)));
    // RunAttention's, which the MLP has overwritten.
    KVMIX_RETURN_IF_ERROR(Norm(Input(i), layer.input_norm, num_tokens_));
    // dW_k and dW_v, one below the other.
    KVMIX_RETURN_IF_ERROR(linear_.Multiply(
        Rows(dqkv_ + q_size_, /*transposed=*/true),
        {normed_, kFloat, hidden_size_}, 2 * kv_size_, hidden_size_,
        num_tokens_, 1, false, dprojection_, hidden_size_));
    KVMIX_RETURN_IF_ERROR(Show(i));
    KVMIX_RETURN_IF_ERROR(InputGradient(dqkv_, layer.qkv, num_tokens_,
                                        hidden_size_, qkv_size_, dnormed_));
    return AddNormGradient(Input(i), layer.input_norm, num_tokens_, dhidden_);
  }

  // dhidden_ of the layer's output becomes that of the attention's.
  absl::Status BackwardMlp(const CudaWeights::Layer& layer) {
    KVMIX_RETURN_IF_ERROR(RunGateUp(layer));
    KVMIX_RETURN_IF_ERROR(InputGradient(dhidden_, layer.down, num_tokens_,
                                        inner_size_, hidden_size_, activated_));
    KVMIX_RETURN_IF_ERROR(Launched(CudaSwiGluGradient(
        gate_up_, activated_, num_tokens_, inner_size_, gate_up_, stream_)));
    KVMIX_RETURN_IF_ERROR(InputGradient(gate_up_, layer.gate_up, num_tokens_,
                                        hidden_size_, 2 * inner_size_,
                                        dnormed_));
    return AddNormGradient(hidden_, layer.post_attention_norm, num_tokens_,
                           dhidden_);
  }

  // dqkv_, of prepared heads, from dhidden_.
  absl::Status BackwardAttention(const CudaWeights::Layer& layer) {
    float* dattended = attended_;
    KVMIX_RETURN_IF_ERROR(InputGradient(dhidden_, layer.output, num_tokens_,
                                        q_size_, hidden_size_, dattended));
    const int group = config_.num_heads / config_.num_kv_heads;
    for (int h = 0; h < config_.num_heads; ++h) {
      KVMIX_RETURN_IF_ERROR(Weigh(h));
      const CudaLinear::Matrix dout = {dattended + QueryAt(h), kFloat, q_size_};
      const bool add = h % group != 0;  // to those of the group's heads before
      const auto multiply = [&](const CudaLinear::Matrix& a,
                                const CudaLinear::Matrix& b, bool add,
                                float* out) {
        return linear_.Multiply(a, b, num_tokens_, config_.head_dim,
                                num_tokens_, 1, add, out, qkv_size_);
      };
      KVMIX_RETURN_IF_ERROR(multiply(Square(scores_, /*transposed=*/true), dout,
                                     add, dqkv_ + ValueAt(h)));
      KVMIX_RETURN_IF_ERROR(linear_.Multiply(
          dout, Rows(qkv_ + ValueAt(h), /*transposed=*/true), num_tokens_,
          num_tokens_, config_.head_dim, 1, false, dscores_, num_tokens_));
      KVMIX_RETURN_IF_ERROR(Launched(CudaSoftmaxGradient(
          scores_, num_tokens_, AttentionScale(config_), dscores_, stream_)));
      KVMIX_RETURN_IF_ERROR(multiply(Square(dscores_), Rows(qkv_ + KeyAt(h)),
                                     false, dqkv_ + QueryAt(h)));
      KVMIX_RETURN_IF_ERROR(multiply(Square(dscores_, /*transposed=*/true),
                                     Rows(qkv_ + QueryAt(h)), add,
                                     dqkv_ + KeyAt(h)));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<float>> Download(const float* from,
                                              int64_t count) {
    std::vector<float> x(count);
    KVMIX_RETURN_IF_ERROR(
        CudaStatus(cudaStreamSynchronize(stream_), "a profile"));
    KVMIX_RETURN_IF_ERROR(CudaStatus(
        cudaMemcpy(x.data(), from, count * 4, cudaMemcpyDeviceToHost),
        "copy to the host"));
    return x;
  }

  // Columns [first, first + size) of rows [T, (H + 2 G) D].
  std::vector<float> Columns(const std::vector<float>& rows, int64_t first,
                             int64_t size) const {
    std::vector<float> x(num_tokens_ * size);
    for (int64_t t = 0; t < num_tokens_; ++t) {
      std::copy_n(rows.data() + t * qkv_size_ + first, size,
                  x.data() + t * size);
    }
    return x;
  }

  absl::Status DownloadStateGradients() {
    if (!signals_.Has(Signal::kKeyStateGradient) &&
        !signals_.Has(Signal::kValueStateGradient))
      return absl::OkStatus();
    KVMIX_ASSIGN_OR_RETURN(const std::vector<float> rows,
                           Download(dqkv_, num_tokens_ * qkv_size_));
    dkeys_ = Columns(rows, q_size_, kv_size_);
    dvalues_ = Columns(rows, q_size_ + kv_size_, kv_size_);
    return absl::OkStatus();
  }

  // Both projections, one below the other, if one of the two is asked for.
  absl::Status DownloadPair(Signal key, Signal value, const float* from,
                            std::vector<float>& pair) {
    if (!signals_.Has(key) && !signals_.Has(value)) return absl::OkStatus();
    KVMIX_ASSIGN_OR_RETURN(pair, Download(from, 2 * kv_size_ * hidden_size_));
    return absl::OkStatus();
  }

  absl::Status Show(int layer) {
    if (signals_.Has(Signal::kKeyStates) ||
        signals_.Has(Signal::kValueStates) ||
        signals_.Has(Signal::kQueryStates)) {
      KVMIX_ASSIGN_OR_RETURN(const std::vector<float> rows,
                             Download(qkv_, num_tokens_ * qkv_size_));
      queries_ = Columns(rows, 0, q_size_);
      keys_ = Columns(rows, q_size_, kv_size_);
      values_ = Columns(rows, q_size_ + kv_size_, kv_size_);
    }
    KVMIX_RETURN_IF_ERROR(DownloadPair(Signal::kKeyProjectionGradient,
                                       Signal::kValueProjectionGradient,
                                       dprojection_, projection_gradients_));
    const float* qkv = static_cast<const float*>(weights_.layers[layer].qkv);
    KVMIX_RETURN_IF_ERROR(
        DownloadPair(Signal::kKeyProjection, Signal::kValueProjection,
                     qkv + q_size_ * hidden_size_, projections_));
    const int64_t half = kv_size_ * hidden_size_;
    LayerTrace trace = EmptyTrace(config_, *key_rotation_, num_tokens_,
                                  options_.prompt, layer);
    const auto set = [&](Signal signal, const float* LayerTrace::*field,
                         const std::vector<float>& data, int64_t first = 0) {
      if (signals_.Has(signal)) trace.*field = data.data() + first;
    };
    set(Signal::kKeyStates, &LayerTrace::key_states, keys_);
    set(Signal::kValueStates, &LayerTrace::value_states, values_);
    set(Signal::kKeyStateGradient, &LayerTrace::key_state_gradient, dkeys_);
    set(Signal::kValueStateGradient, &LayerTrace::value_state_gradient,
        dvalues_);
    set(Signal::kKeyProjectionGradient, &LayerTrace::key_projection_gradient,
        projection_gradients_);
    set(Signal::kValueProjectionGradient,
        &LayerTrace::value_projection_gradient, projection_gradients_, half);
    set(Signal::kQueryStates, &LayerTrace::query_states, queries_);
    set(Signal::kKeyProjection, &LayerTrace::key_projection, projections_);
    set(Signal::kValueProjection, &LayerTrace::value_projection, projections_,
        half);
    KVMIX_RETURN_IF_ERROR(CheckIsFinite(trace));
    return observe_(trace);
  }

  const ModelConfig& config_;
  const std::shared_ptr<const KeyRotation> key_rotation_ =
      MakeKeyRotation(config_);
  const CudaWeights& weights_;
  CudaLinear& linear_;
  const cudaStream_t stream_;
  const absl::Span<const int32_t> tokens_;
  const TraceOptions& options_;
  const SignalSet signals_;
  const std::function<absl::Status(const LayerTrace&)>& observe_;
  const int64_t num_tokens_;  // T
  const int64_t num_labels_;
  const int64_t hidden_size_;  // C
  const int64_t q_size_;       // H D
  const int64_t kv_size_;      // G D
  const int64_t qkv_size_;     // (H + 2 G) D
  const int64_t inner_size_;   // I
  const int64_t logit_tile_;

  DeviceMemory memory_;                                  // of all that follow
  int32_t *token_ids_ = nullptr, *positions_ = nullptr;  // [T]
  float* losses_ = nullptr;                              // [labels]
  float* inputs_ = nullptr;                              // [L, T, C]
  float *hidden_ = nullptr, *dhidden_ = nullptr;         // [T, C]
  float *normed_ = nullptr, *dnormed_ = nullptr;         // [T, C]
  float* projected_ = nullptr;              // [T, (H + 2 G) D], without biases
  float *qkv_ = nullptr, *dqkv_ = nullptr;  // the same, as prepared
  float* attended_ = nullptr;               // [T, H D]
  float* gate_up_ = nullptr;                // [T, 2 I]
  float* activated_ = nullptr;              // [T, I]
  float *scores_ = nullptr, *dscores_ = nullptr;  // [T, T], of one head
  float* logits_ = nullptr;                       // [logit tile, vocab]
  float* dprojection_ = nullptr;                  // [2 G D, C]

  // On the host, of the layer that is shown.
  std::vector<float> queries_, keys_, values_, dkeys_, dvalues_;
  std::vector<float> projections_, projection_gradients_;  // [2 G D, C]
};

}  // namespace

absl::StatusOr<double> TraceLayersOnCuda(
    const ModelConfig& config, const CudaWeights& weights, CudaLinear& linear,
    cudaStream_t stream, absl::Span<const int32_t> tokens,
    const TraceOptions& options,
    const std::function<absl::Status(const LayerTrace&)>& observe) {
  return Tracer(config, weights, linear, stream, tokens, options, observe)
      .Run();
}

}  // namespace kvmix
