#include <cmath>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "experiments/command_line.h"
#include "experiments/commands.h"
#include "experiments/config_flags.h"
#include "experiments/loaded_model.h"
#include "experiments/observe_prompts.h"
#include "experiments/paths.h"
#include "experiments/record.pb.h"
#include "experiments/text_proto.h"
#include "experiments/windows.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

// Adds up |keys| and |values| channel by channel. It is shown what an estimator
// is shown, but scores nothing.
class Magnitudes final : public ImportanceEstimator {
 public:
  SignalSet RequiredSignals() const override {
    return {Signal::kKeyStates, Signal::kValueStates};
  }
  absl::Status Start(const ProfileContext& context) override {
    layers_.resize(context.num_layers);
    return absl::OkStatus();
  }
  absl::Status Observe(const LayerTrace& trace) override {
    Layer& layer = layers_[trace.layer];
    const int64_t channels = int64_t{trace.num_kv_heads} * trace.head_dim;
    Add(trace.key_states, trace.num_tokens, channels, layer.key);
    Add(trace.value_states, trace.num_tokens, channels, layer.value);
    layer.tokens += trace.num_tokens;
    return absl::OkStatus();
  }
  absl::StatusOr<ImportanceProfile> Finish() override {
    return absl::UnimplementedError("magnitudes are no scores");
  }

  MagnitudeRecord Record(const std::string& model) const {
    MagnitudeRecord record;
    record.set_model(model);
    for (const Layer& layer : layers_) {
      LayerMagnitudes& out = *record.add_layer();
      const double tokens = static_cast<double>(layer.tokens);
      for (double sum : layer.key) out.add_key(sum / tokens);
      for (double sum : layer.value) out.add_value(sum / tokens);
    }
    return record;
  }

 private:
  struct Layer {
    std::vector<double> key, value;
    int64_t tokens = 0;
  };

  static void Add(const float* states, int64_t tokens, int64_t channels,
                  std::vector<double>& sums) {
    sums.resize(channels);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t c = 0; c < channels; ++c)
        sums[c] += std::abs(states[t * channels + c]);
    }
  }

  std::vector<Layer> layers_;
};

}  // namespace

absl::Status MagnitudesCommand(absl::Span<const std::string> args,
                               const std::atomic<bool>& stop) {
  CommandLine command_line(
      "kvmix magnitudes [flags]",
      "Writes the mean magnitude of every channel of keys and values, which "
      "kvmix report draws,\nover the prompts that profiles are made from. Name "
      "the file magnitudes*.textproto.");
  ConfigFlags flags;
  std::string output = "magnitudes.textproto";
  flags.AddTo(command_line);
  command_line.Flag("output", &output, "file to write");
  KVMIX_RETURN_IF_ERROR(command_line.ParseFlags(args));
  KVMIX_ASSIGN_OR_RETURN(const ExperimentConfig config, flags.Load());
  KVMIX_ASSIGN_OR_RETURN(LoadedModel model,
                         LoadModel(config.model(), config.threads()));
  KVMIX_ASSIGN_OR_RETURN(
      const Prompts prompts,
      LoadPrompts(config, *model.tokenizer, model.max_position()));
  Magnitudes magnitudes;
  KVMIX_RETURN_IF_ERROR(
      magnitudes.Start({.num_layers = model.transformer->config().num_layers,
                        .seed = config.seed()}));
  KVMIX_RETURN_IF_ERROR(
      ObservePrompts(model.where_to_run(), prompts, magnitudes, {.stop = &stop})
          .status());
  return WriteTextProto(magnitudes.Record(config.model().path()),
                        ResolvePath(output));
}

}  // namespace kvmix
