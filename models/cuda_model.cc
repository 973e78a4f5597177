// The model on a CUDA device: cuBLAS for matrix products, kernels of cuda_ops.h
// for the rest, and caches with their attention in cuda_sequences.h.
//
// The residual stream, and what comes out of products, are float; norms,
// attention and activations are rounded to the weights' type, since they go
// into products. A pass copies its tokens to the device, launches everything on
// one stream, and copies logits back. A decode step (one token of each
// sequence) is captured into a CUDA graph the first time, and replayed while
// the sequences' LaunchKey() is the same; where the host takes part, there is
// none.
#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/base/device_memory.h"
#include "kvmix/base/status_macros.h"
#include "models/cuda_host_sequences.h"
#include "models/cuda_linear.h"
#include "models/cuda_ops.h"
#include "models/cuda_sequences.h"
#include "models/cuda_trace.h"
#include "models/cuda_weights.h"
#include "models/device_model.h"
#include "models/ops.h"

namespace kvmix {
namespace {

// Rows that pass the feed-forward network together: bounds what a long prompt
// needs beside its hidden states.
constexpr int64_t kRowTile = 1024;
// Logits are made, and copied to the host, in tiles of about 16 MiB; at least
// one row, and of a decode step all.
constexpr int64_t kLogitTileFloats = int64_t{4} << 20;

class CudaModel final : public DeviceModel {
 public:
  CudaModel(const ModelConfig& config, bool use_graphs, ThreadPool& threads)
      : config_(config),
        use_graphs_(use_graphs),
        q_size_(int64_t{config.num_heads} * config.head_dim),
        qkv_size_(q_size_ + 2 * int64_t{config.num_kv_heads} * config.head_dim),
        key_rotation_(MakeKeyRotation(config)),
        host_(threads) {}
  ~CudaModel() override {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  absl::Status Load(const WeightSource& source, CudaNumber type);

  const ModelConfig& config() const override { return config_; }
  int64_t weight_bytes() const override { return weights_.memory.bytes(); }
  absl::StatusOr<DeviceMemoryUse> MemoryUse() const override {
    KVMIX_ASSIGN_OR_RETURN(const int64_t free, FreeDeviceBytes());
    return DeviceMemoryUse{
        .model = weights_.memory.bytes() + linear_->workspace_bytes(),
        .passes = activations_.bytes() + logits_memory_.bytes(),
        .in_use = free_before_ - free,
        .free = free};
  }
  absl::StatusOr<std::unique_ptr<DeviceSequences>> NewSequences(
      const CachePlan& plan, std::shared_ptr<const RecencyPolicy> recency,
      const SequencesOptions& options) override;
  absl::Status Forward(DeviceSequences& sequences,
                       absl::Span<const DeviceChunk> batch,
                       const LogitsConsumer& consume) override;
  absl::StatusOr<double> TraceLayers(
      absl::Span<const int32_t> tokens, const TraceOptions& options,
      const std::function<absl::Status(const LayerTrace&)>& observe) override {
    const ComputeType compute = weights_.type == CudaNumber::kFloat
                                    ? ComputeType::kFloat32
                                    : ComputeType::kBFloat16;
    KVMIX_RETURN_IF_ERROR(ValidateTrace(config_, compute, tokens, options));
    if (compute != ComputeType::kFloat32) {
      return absl::UnimplementedError(
          "model.compute is BFLOAT16, but profiles on device CUDA need "
          "FLOAT32; "
          "set it, or make the profile with model.device: CPU");
    }
    return TraceLayersOnCuda(config_, weights_, *linear_, stream_, tokens,
                             options, observe);
  }

 private:
  // A row of logits to be made.
  struct WantedRow {
    int chunk;
    int64_t token;
  };

  CudaSequencesSetting Setting() const {
    return {.shape = {.num_layers = config_.num_layers,
                      .num_kv_heads = config_.num_kv_heads,
                      .head_dim = config_.head_dim,
                      .key_rotation = key_rotation_},
            .num_heads = config_.num_heads,
            .attention = {.scale = AttentionScale(config_),
                          .sliding_window = config_.sliding_window},
            .type = weights_.type};
  }
  absl::Status Validate(const CudaSequences& sequences,
                        absl::Span<const DeviceChunk> batch) const;
  absl::Status Reserve(int64_t rows, int64_t wanted);
  absl::Status UploadTokens(const CudaSequences& sequences,
                            absl::Span<const DeviceChunk> batch);
  absl::Status Launch(CudaSequences& sequences);
  absl::Status LaunchLayer(int index, CudaSequences& sequences);
  absl::Status LaunchMlp(const CudaWeights::Layer& layer, int64_t first,
                         int64_t rows);
  // Logits of rows [first, first + rows) of those wanted.
  absl::Status LaunchLogits(int64_t first, int64_t rows);
  absl::Status LaunchAll(CudaSequences& sequences,
                         absl::Span<const DeviceChunk> batch);
  absl::Status ShowLogits(const LogitsConsumer& consume);
  absl::Status Product(const void* x, const void* weight, int64_t rows,
                       int64_t inputs, int64_t outputs, bool add, float* out) {
    return linear_->Forward(x, weight, weights_.type, rows, inputs, outputs,
                            add, out);
  }
  absl::Status Launched(cudaError_t error) const {
    return CudaStatus(error, "launch of a kernel");
  }
  int64_t LogitTile() const {
    return std::max<int64_t>(1, kLogitTileFloats / config_.vocab_size);
  }

  const ModelConfig config_;
  const bool use_graphs_;
  const int64_t q_size_;    // H D
  const int64_t qkv_size_;  // (H + 2 G) D
  const std::shared_ptr<const KeyRotation> key_rotation_;
  HostWork host_;
  int64_t free_before_ = 0;  // of the device, before the model was loaded
  cudaStream_t stream_ = nullptr;
  CudaWeights weights_;
  std::unique_ptr<CudaLinear> linear_;

  // Of the pass that runs; row r is a token, the chunks' tokens one after the
  // other.
  int64_t num_rows_ = 0;
  std::vector<WantedRow> wanted_;
  PinnedMemory input_;   // what goes to tokens_, positions_, logit_rows_
  PinnedMemory output_;  // [logit tile, vocab]
  // Memory of a pass, kept for the next. Reserved rows of both kinds.
  int64_t reserved_rows_ = 0, reserved_logits_ = 0;
  uint64_t reservation_ = 0;  // changes when memory moves
  DeviceMemory activations_;
  DeviceMemory logits_memory_;
  int32_t* tokens_ = nullptr;      // [rows]
  int32_t* positions_ = nullptr;   // [rows]
  int32_t* logit_rows_ = nullptr;  // [rows]
  float* hidden_ = nullptr;        // [rows, C]
  float* qkv_ = nullptr;           // [rows, (H + 2 G) D]
  void* normed_ = nullptr;         // [rows, C]
  void* attended_ = nullptr;       // [rows, H D]
  float* gate_up_ = nullptr;       // [tile, 2 I]
  void* activated_ = nullptr;      // [tile, I]
  void* logit_inputs_ = nullptr;   // [logit tile, C]
  float* logits_ = nullptr;        // [logit tile, vocab]
};

absl::Status CudaModel::Load(const WeightSource& source, CudaNumber type) {
  KVMIX_RETURN_IF_ERROR(
      CudaStatus(cudaStreamCreate(&stream_), "start of the CUDA device"));
  KVMIX_ASSIGN_OR_RETURN(free_before_, FreeDeviceBytes());
  KVMIX_ASSIGN_OR_RETURN(weights_,
                         LoadCudaWeights(config_, source, type, host_.threads));
  KVMIX_ASSIGN_OR_RETURN(CudaLinear linear, CudaLinear::Create(stream_));
  linear_ = std::make_unique<CudaLinear>(std::move(linear));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<DeviceSequences>> CudaModel::NewSequences(
    const CachePlan& plan, std::shared_ptr<const RecencyPolicy> recency,
    const SequencesOptions& options) {
  if (config_.sliding_window > 0 && options.eviction->evicts()) {
    return absl::UnimplementedError(absl::StrCat(
        "there is an eviction policy but the model attends to a sliding window "
        "of ",
        config_.sliding_window, " tokens; use eviction_policy \"keep_all\""));
  }
  return NewCudaSequences(Setting(), plan, std::move(recency), options, host_);
}

absl::Status CudaModel::Validate(const CudaSequences& sequences,
                                 absl::Span<const DeviceChunk> batch) const {
  for (size_t i = 0; i < batch.size(); ++i) {
    const DeviceChunk& chunk = batch[i];
    if (chunk.sequence < 0 || chunk.sequence >= sequences.num_sequences()) {
      return absl::InvalidArgumentError(
          absl::StrCat("batch[", i, "].sequence is ", chunk.sequence,
                       " but must be in [0, ", sequences.num_sequences(), ")"));
    }
    if (chunk.tokens.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "batch[", i, "].tokens is empty but must hold at least one token"));
    }
    const int64_t past = sequences.num_tokens(chunk.sequence);
    const int64_t length = past + static_cast<int64_t>(chunk.tokens.size());
    if (length > config_.max_position) {
      return absl::OutOfRangeError(absl::StrCat(
          "batch[", i, "] would be ", length, " tokens long (", past,
          " in its cache) but the model's context is ", config_.max_position));
    }
    for (size_t t = 0; t < chunk.tokens.size(); ++t) {
      if (chunk.tokens[t] < 0 || chunk.tokens[t] >= config_.vocab_size) {
        return absl::InvalidArgumentError(
            absl::StrCat("batch[", i, "].tokens[", t, "] is ", chunk.tokens[t],
                         " but must be in [0, ", config_.vocab_size, ")"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CudaModel::Reserve(int64_t rows, int64_t wanted) {
  const int64_t logit_rows = std::min(wanted, LogitTile());
  if (rows > reserved_rows_) {
    const int64_t tile = std::min(rows, kRowTile);
    const int64_t size = BytesOf(weights_.type);
    activations_ = DeviceMemory();  // first, for there may be no room for both
    reserved_rows_ = 0;
    KVMIX_ASSIGN_OR_RETURN(
        activations_,
        DeviceMemory::AllocateFor(
            [&](DeviceArena& arena) {
              tokens_ = arena.Take<int32_t>(rows);
              positions_ = arena.Take<int32_t>(rows);
              logit_rows_ = arena.Take<int32_t>(rows);
              hidden_ = arena.Take<float>(rows * config_.hidden_size);
              qkv_ = arena.Take<float>(rows * qkv_size_);
              normed_ = arena.Take<char>(rows * config_.hidden_size * size);
              attended_ = arena.Take<char>(rows * q_size_ * size);
              gate_up_ =
                  arena.Take<float>(tile * 2 * config_.intermediate_size);
              activated_ =
                  arena.Take<char>(tile * config_.intermediate_size * size);
            },
            absl::StrCat("activations of ", rows, " tokens in one pass")));
    KVMIX_RETURN_IF_ERROR(input_.Reserve(rows * 3 * 4, "tokens of a pass"));
    reserved_rows_ = rows;
    ++reservation_;
  }
  if (logit_rows > reserved_logits_) {
    logits_memory_ = DeviceMemory();
    reserved_logits_ = 0;
    KVMIX_ASSIGN_OR_RETURN(
        logits_memory_,
        DeviceMemory::AllocateFor(
            [&](DeviceArena& arena) {
              logit_inputs_ = arena.Take<char>(
                  logit_rows * config_.hidden_size * BytesOf(weights_.type));
              logits_ = arena.Take<float>(logit_rows * config_.vocab_size);
            },
            "logits"));
    KVMIX_RETURN_IF_ERROR(
        output_.Reserve(logit_rows * config_.vocab_size * 4, "logits"));
    reserved_logits_ = logit_rows;
    ++reservation_;
  }
  return absl::OkStatus();
}

// Counts the rows, and copies tokens, positions and wanted rows to the device.
absl::Status CudaModel::UploadTokens(const CudaSequences& sequences,
                                     absl::Span<const DeviceChunk> batch) {
  std::vector<int32_t> tokens, positions, logit_rows;
  wanted_.clear();
  for (size_t i = 0; i < batch.size(); ++i) {
    const int64_t count = static_cast<int64_t>(batch[i].tokens.size());
    const int64_t first_wanted = batch[i].logits == WantLogits::kNone ? count
                                 : batch[i].logits == WantLogits::kLast
                                     ? count - 1
                                     : 0;
    const int64_t past = sequences.num_tokens(batch[i].sequence);
    for (int64_t t = 0; t < count; ++t) {
      if (t >= first_wanted) {
        logit_rows.push_back(static_cast<int32_t>(tokens.size()));
        wanted_.push_back({static_cast<int>(i), t});
      }
      tokens.push_back(batch[i].tokens[t]);
      positions.push_back(static_cast<int32_t>(past + t));
    }
  }
  num_rows_ = static_cast<int64_t>(tokens.size());
  KVMIX_RETURN_IF_ERROR(
      Reserve(num_rows_, static_cast<int64_t>(wanted_.size())));
  int32_t* from = input_.as<int32_t>();
  for (const auto& [numbers, to] :
       {std::pair(&tokens, tokens_), std::pair(&positions, positions_),
        std::pair(&logit_rows, logit_rows_)}) {
    std::copy(numbers->begin(), numbers->end(), from);
    KVMIX_RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(to, from, numbers->size() * 4,
                                   cudaMemcpyHostToDevice, stream_),
                   "copy of tokens"));
    from += numbers->size();
  }
  return absl::OkStatus();
}

absl::Status CudaModel::LaunchMlp(const CudaWeights::Layer& layer,
                                  int64_t first, int64_t rows) {
  const int64_t size = config_.hidden_size, inner = config_.intermediate_size;
  float* hidden = hidden_ + first * size;
  KVMIX_RETURN_IF_ERROR(Launched(CudaRmsNorm(
      hidden, nullptr, layer.post_attention_norm, config_.rms_norm_eps, rows,
      size, normed_, weights_.type, stream_)));
  KVMIX_RETURN_IF_ERROR(Product(normed_, layer.gate_up, rows, size, 2 * inner,
                                /*add=*/false, gate_up_));
  KVMIX_RETURN_IF_ERROR(Launched(
      CudaSwiGlu(gate_up_, rows, inner, activated_, weights_.type, stream_)));
  return Product(activated_, layer.down, rows, inner, size, /*add=*/true,
                 hidden);
}

absl::Status CudaModel::LaunchLayer(int index, CudaSequences& sequences) {
  const CudaWeights::Layer& layer = weights_.layers[index];
  const int64_t size = config_.hidden_size;
  KVMIX_RETURN_IF_ERROR(Launched(
      CudaRmsNorm(hidden_, nullptr, layer.input_norm, config_.rms_norm_eps,
                  num_rows_, size, normed_, weights_.type, stream_)));
  KVMIX_RETURN_IF_ERROR(Product(normed_, layer.qkv, num_rows_, size, qkv_size_,
                                /*add=*/false, qkv_));
  KVMIX_RETURN_IF_ERROR(
      Launched(CudaPrepareHeads(HeadsOf(config_, weights_, layer), positions_,
                                num_rows_, qkv_, stream_)));
  KVMIX_RETURN_IF_ERROR(sequences.RunLayer(index, qkv_, attended_, stream_));
  KVMIX_RETURN_IF_ERROR(Product(attended_, layer.output, num_rows_, q_size_,
                                size, /*add=*/true, hidden_));
  for (int64_t first = 0; first < num_rows_; first += kRowTile) {
    KVMIX_RETURN_IF_ERROR(
        LaunchMlp(layer, first, std::min(kRowTile, num_rows_ - first)));
  }
  return absl::OkStatus();
}

absl::Status CudaModel::LaunchLogits(int64_t first, int64_t rows) {
  KVMIX_RETURN_IF_ERROR(Launched(CudaRmsNorm(
      hidden_, logit_rows_ + first, weights_.final_norm, config_.rms_norm_eps,
      rows, config_.hidden_size, logit_inputs_, weights_.type, stream_)));
  return Product(logit_inputs_, weights_.lm_head, rows, config_.hidden_size,
                 config_.vocab_size, /*add=*/false, logits_);
}

absl::Status CudaModel::Launch(CudaSequences& sequences) {
  KVMIX_RETURN_IF_ERROR(
      Launched(CudaEmbed(weights_.embedding, weights_.type, tokens_, num_rows_,
                         config_.hidden_size, hidden_, stream_)));
  for (int i = 0; i < config_.num_layers; ++i) {
    KVMIX_RETURN_IF_ERROR(
        AddContext(LaunchLayer(i, sequences), absl::StrCat("layer ", i)));
  }
  const int64_t first_tile =
      std::min<int64_t>(static_cast<int64_t>(wanted_.size()), LogitTile());
  if (first_tile == 0) return absl::OkStatus();
  return LaunchLogits(0, first_tile);
}

// Everything up to the first tile of logits.
absl::Status CudaModel::LaunchAll(CudaSequences& sequences,
                                  absl::Span<const DeviceChunk> batch) {
  const bool is_decode_step = num_rows_ == static_cast<int64_t>(batch.size());
  const std::optional<uint64_t> launches =
      use_graphs_ && is_decode_step ? sequences.LaunchKey() : std::nullopt;
  if (!launches) return Launch(sequences);
  const std::vector<uint64_t> key = {*launches, reservation_,
                                     static_cast<uint64_t>(num_rows_),
                                     static_cast<uint64_t>(wanted_.size())};
  if (!sequences.decode.Serves(key)) {
    KVMIX_RETURN_IF_ERROR(sequences.decode.Capture(
        key, stream_, [&] { return Launch(sequences); }));
  }
  return sequences.decode.Launch(stream_);
}

absl::Status CudaModel::ShowLogits(const LogitsConsumer& consume) {
  const int64_t vocab = config_.vocab_size;
  const int64_t total = static_cast<int64_t>(wanted_.size());
  for (int64_t first = 0; first < total; first += LogitTile()) {
    const int64_t count = std::min(LogitTile(), total - first);
    if (first > 0) KVMIX_RETURN_IF_ERROR(LaunchLogits(first, count));
    KVMIX_RETURN_IF_ERROR(CudaStatus(
        cudaMemcpyAsync(output_.as<float>(), logits_, count * vocab * 4,
                        cudaMemcpyDeviceToHost, stream_),
        "copy of logits"));
    KVMIX_RETURN_IF_ERROR(
        CudaStatus(cudaStreamSynchronize(stream_), "forward pass"));
    for (int64_t r = 0; r < count;) {
      const WantedRow& start = wanted_[first + r];
      int64_t end = r + 1;
      while (end < count && wanted_[first + end].chunk == start.chunk) ++end;
      KVMIX_RETURN_IF_ERROR(consume(start.chunk, start.token, end - r,
                                    output_.as<float>() + r * vocab));
      r = end;
    }
  }
  return absl::OkStatus();
}

absl::Status CudaModel::Forward(DeviceSequences& sequences,
                                absl::Span<const DeviceChunk> batch,
                                const LogitsConsumer& consume) {
  auto& own = static_cast<CudaSequences&>(sequences);
  if (batch.empty()) return absl::OkStatus();
  KVMIX_RETURN_IF_ERROR(Validate(own, batch));
  KVMIX_RETURN_IF_ERROR(UploadTokens(own, batch));
  std::vector<SequenceChunk> chunk;
  for (const DeviceChunk& c : batch)
    chunk.push_back({c.sequence, static_cast<int64_t>(c.tokens.size())});
  KVMIX_RETURN_IF_ERROR(own.BeginChunk(chunk, stream_));
  KVMIX_RETURN_IF_ERROR(LaunchAll(own, batch));
  KVMIX_RETURN_IF_ERROR(own.EndChunk(stream_));
  KVMIX_RETURN_IF_ERROR(ShowLogits(consume));
  // Waits, so that the host may write its inputs of the next pass.
  return own.CheckNumbers(stream_);
}

absl::StatusOr<std::unique_ptr<DeviceModel>> Load(
    const ModelConfig& config, const WeightSource& weights,
    const DeviceModelOptions& options, ThreadPool& threads) {
  KVMIX_RETURN_IF_ERROR(Validate(config));
  if (options.compute == ComputeType::kInt8) {
    return absl::UnimplementedError(
        "model.compute INT8 is not there on device CUDA; choose BFLOAT16 or "
        "FLOAT32");
  }
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    cudaGetLastError();
    return absl::FailedPreconditionError(absl::StrCat(
        "device CUDA: this machine has no CUDA device that this program can "
        "use (CUDA says: ",
        error == cudaSuccess ? "none" : cudaGetErrorString(error),
        "); choose device CPU"));
  }
  auto model = std::make_unique<CudaModel>(config, options.use_graphs, threads);
  const CudaNumber type = options.compute == ComputeType::kBFloat16
                              ? CudaNumber::kBFloat16
                              : CudaNumber::kFloat;
  KVMIX_RETURN_IF_ERROR(AddContext(model->Load(weights, type), "device CUDA"));
  return model;
}

const bool kRegistered = SetCudaModelLoader(Load);

}  // namespace
}  // namespace kvmix
