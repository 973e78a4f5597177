#include <iostream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "experiments/command_line.h"
#include "experiments/commands.h"
#include "experiments/config_flags.h"
#include "experiments/loaded_model.h"
#include "experiments/observe_prompts.h"
#include "experiments/paths.h"
#include "experiments/table.h"
#include "experiments/text_proto.h"
#include "experiments/windows.h"
#include "kvmix/base/component.pb.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/importance/codebook_calibration.h"
#include "quant/codebook.pb.h"

namespace kvmix {
namespace {

constexpr int kMaxBits = 6;  // of quantizer "codebook"

absl::StatusOr<std::vector<int>> ParseBits(const std::string& list) {
  std::vector<int> bits;
  for (const absl::string_view text : absl::StrSplit(list, ',')) {
    if (!absl::SimpleAtoi(text, &bits.emplace_back()) || bits.back() < 1 ||
        bits.back() > kMaxBits) {
      return UsageError(absl::StrCat("--bits is \"", list,
                                     "\" but must be numbers from 1 to ",
                                     kMaxBits, ", as 2,3,4"));
    }
  }
  return bits;
}

// Levels of one side go to `options`, what they lose to `table`.
absl::Status Fit(const CodebookCalibration& calibration, Side side,
                 const std::vector<int>& all_bits,
                 CodebookOptions::Side& options, Table& table) {
  for (const int bits : all_bits) {
    KVMIX_ASSIGN_OR_RETURN(const std::vector<float> levels,
                           calibration.Levels(side, bits));
    CodebookOptions::Levels& out = *options.add_levels();
    out.set_bits(bits);
    for (const float level : levels) out.add_level(level);
    const ShareHistogram& shares = calibration.shares(side);
    table.rows.push_back(
        {SideName(side), absl::StrCat(bits),
         absl::StrFormat("%.3f", shares.Error(levels) /
                                     shares.Error(EquallySpacedLevels(bits)))});
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CalibrateCodebookCommand(absl::Span<const std::string> args,
                                      const std::atomic<bool>& stop) {
  CommandLine command_line(
      "kvmix calibrate_codebook [flags]",
      "Fits levels for quantizer \"codebook\" to a model's keys and values, "
      "errors weighted by\nsquared gradients, over the prompts that profiles "
      "are made from (KVQuant, arXiv\n2401.18079). Prints what they lose of "
      "what equally spaced levels do, on these prompts,\nand writes a "
      "quantizer "
      "for a config: --set \"quantizer={$(cat FILE)}\".");
  ConfigFlags flags;
  CodebookCalibrationOptions options;
  std::string bits_list = "2,3,4", output = "codebook.textproto";
  flags.AddTo(command_line);
  command_line.Flag("bits", &bits_list, "numbers of bits to fit levels for");
  command_line.Flag("group_size", &options.group_size,
                    "elements that share a range; divides head_dim");
  command_line.Flag("outliers", &options.outlier_fraction,
                    "share that sparse_outliers takes out before");
  command_line.Flag("pre_rope", &options.pre_rope, "keys before RoPE");
  command_line.Flag("output", &output, "file to write");
  KVMIX_RETURN_IF_ERROR(command_line.ParseFlags(args));
  KVMIX_ASSIGN_OR_RETURN(const std::vector<int> bits, ParseBits(bits_list));
  if (options.group_size < 1) {
    return UsageError(absl::StrCat("--group_size is ", options.group_size,
                                   " but must be positive"));
  }
  if (!(options.outlier_fraction >= 0 && options.outlier_fraction <= 0.5)) {
    return UsageError(absl::StrCat("--outliers is ", options.outlier_fraction,
                                   " but must be in [0, 0.5]"));
  }
  KVMIX_ASSIGN_OR_RETURN(const ExperimentConfig config, flags.Load());
  KVMIX_ASSIGN_OR_RETURN(LoadedModel model,
                         LoadModel(config.model(), config.threads()));
  KVMIX_ASSIGN_OR_RETURN(
      const Prompts prompts,
      LoadPrompts(config, *model.tokenizer, model.max_position()));
  CodebookCalibration calibration(options);
  KVMIX_RETURN_IF_ERROR(calibration.Start({}));
  KVMIX_RETURN_IF_ERROR(ObservePrompts(model.where_to_run(), prompts,
                                       calibration, {.stop = &stop})
                            .status());

  CodebookOptions fitted;
  fitted.mutable_key()->set_group_size(options.group_size);
  fitted.mutable_value()->set_group_size(options.group_size);
  Table table;
  table.header = {"side", "bits", "error / equally spaced"};
  KVMIX_RETURN_IF_ERROR(
      Fit(calibration, Side::kKey, bits, *fitted.mutable_key(), table));
  KVMIX_RETURN_IF_ERROR(
      Fit(calibration, Side::kValue, bits, *fitted.mutable_value(), table));
  Component quantizer;
  quantizer.set_name("codebook");
  quantizer.mutable_options()->PackFrom(fitted);
  std::cout << table.Aligned() << "\n";
  return WriteTextProto(quantizer, ResolvePath(output));
}

}  // namespace kvmix
