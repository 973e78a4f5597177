#include <iostream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "experiments/bench/bench.h"
#include "experiments/bench/bench_figure.h"
#include "experiments/bench/bench_methods.h"
#include "experiments/bench/bench_report.h"
#include "experiments/command_line.h"
#include "experiments/commands.h"
#include "experiments/paths.h"
#include "experiments/runtime_flags.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"
#include "models/random_model.h"

namespace kvmix {
namespace {

std::vector<std::string> Names(const std::string& list) {
  return absl::StrSplit(list, ',', absl::SkipEmpty());
}

absl::StatusOr<std::vector<int64_t>> Numbers(const char* flag,
                                             const std::string& list) {
  std::vector<int64_t> numbers;
  for (const std::string& text : Names(list)) {
    int64_t number = 0;
    if (text == "max" && absl::string_view(flag) == "batch") {
      number = kLargestBatch;
    } else if (!absl::SimpleAtoi(text, &number)) {
      return UsageError(absl::StrCat("--", flag, " is \"", list,
                                     "\" but must be numbers with commas "
                                     "between, as 1,8"));
    }
    numbers.push_back(number);
  }
  return numbers;
}

// What both benchmarks take.
struct BenchFlags {
  std::string shape, model, output = "md", figure;
  std::string kv = "fp16,4bit_g32,2bit_g32,kvmix", depth = "0", batch = "1",
              threads = "0", profile;
  BenchOptions generate;
  ProfileBenchOptions observe;
  ComputeFlag compute;
  ArithmeticFlag arithmetic;
  DeviceFlag device;
  double memory_limit = 0;  // MiB

  void AddTo(CommandLine& command_line);
  absl::Status Resolve();
};

void BenchFlags::AddTo(CommandLine& command_line) {
  command_line.Flag("shape", &shape,
                    absl::StrCat("random weights of a known shape: ",
                                 absl::StrJoin(RandomModelShapes(), ", "),
                                 ";\n135m:12 has 12 layers"));
  command_line.Flag("model", &model,
                    "instead, a Hugging Face folder, a .gguf file, "
                    "\"embedded\" or \"smollm2\"");
  command_line.Flag("weights", &generate.weights,
                    "how random weights are stored: F32, F16, BF16, Q8_0, "
                    "Q4_0, Q4_1");
  command_line.Flag("kv", &kv, "ways to store the cache, see above");
  command_line.Flag("depth", &depth, "tokens already in the cache");
  command_line.Flag("batch", &batch,
                    "sequences at once; max, with --throughput: as many as "
                    "fit");
  command_line.Flag("threads", &threads, "0: one for each core");
  command_line.Flag("pin_threads", &generate.pin_threads,
                    "keep every thread on a CPU of its own");
  command_line.Flag("prompt", &generate.prompt_tokens,
                    "tokens of a prefill; 0: do not measure it");
  command_line.Flag("generate", &generate.decode_tokens,
                    "decode steps; 0: do not measure them");
  command_line.Flag("repeat", &generate.repeat, "measurements of every row");
  command_line.Flag("profile", &profile,
                    "instead of all that: importance estimators, whose time is "
                    "compared\nwith that of a forward pass of the same "
                    "prompts, as gradient_norm");
  command_line.Flag("profile_prompts", &observe.prompts, "how many prompts");
  command_line.Flag("profile_tokens", &observe.prompt_tokens,
                    "tokens of each of them");
  command_line.Flag("throughput", &generate.throughput,
                    "instead, serve whole batches: all prompts, then all "
                    "decode steps");
  device.AddTo(command_line);
  command_line.Flag("memory_limit", &memory_limit,
                    "with --throughput, MiB that weights and caches may take "
                    "together;\n0: all there are on a device");
  compute.AddTo(command_line);
  arithmetic.AddTo(command_line);
  command_line.Flag("output", &output, "md, csv or json");
  command_line.Flag("figure", &figure,
                    "also draw decode speeds below the read bandwidth, as SVG "
                    "into this file");
}

absl::Status BenchFlags::Resolve() {
  ModelSource source;
  source.set_path(model);
  KVMIX_RETURN_IF_ERROR(compute.Apply(source));
  KVMIX_RETURN_IF_ERROR(arithmetic.Apply(source));
  KVMIX_RETURN_IF_ERROR(device.Apply(source));
  if (source.device() == ModelSource::CUDA) generate.throughput = true;
  if (!(memory_limit >= 0 && memory_limit < 1e9)) {
    return UsageError(absl::StrCat("--memory_limit is ", memory_limit,
                                   " but must be MiB, at least 0"));
  }
  generate.memory_limit = static_cast<int64_t>(memory_limit * (1 << 20));
  generate.shape = observe.shape = shape;
  generate.model = observe.model = source;
  observe.weights = generate.weights;
  generate.methods = Names(kv);
  observe.estimators = Names(profile);
  KVMIX_ASSIGN_OR_RETURN(generate.depths, Numbers("depth", depth));
  KVMIX_ASSIGN_OR_RETURN(generate.batches, Numbers("batch", batch));
  KVMIX_ASSIGN_OR_RETURN(generate.threads, Numbers("threads", threads));
  observe.threads = generate.threads;
  observe.pin_threads = generate.pin_threads;
  return absl::OkStatus();
}

}  // namespace

absl::Status BenchCommand(absl::Span<const std::string> args,
                          const std::atomic<bool>& stop) {
  CommandLine command_line(
      "kvmix bench --shape=NAME [flags]",
      absl::StrCat(
          "Measures prefill and decode speed, memory, and the share of the "
          "machine's read\nbandwidth that decode reaches, for every "
          "combination of --kv, --depth, --batch and\n--threads (lists with "
          "commas between). Rows are measured in turns; compare rows of\none "
          "run. Caches are filled to their depth with random keys and "
          "values.\n\nWith --throughput, or --device=cuda, which implies it, "
          "whole batches are served:\nall prompts, then all decode steps; "
          "--batch=1,16,max ends with as many sequences as\nfit.\n\nWays to "
          "store the cache:\n",
          BenchMethodHelp()));
  BenchFlags flags;
  flags.AddTo(command_line);
  KVMIX_RETURN_IF_ERROR(command_line.ParseFlags(args));
  KVMIX_ASSIGN_OR_RETURN(const BenchOutput output,
                         ParseBenchOutput(flags.output));
  KVMIX_RETURN_IF_ERROR(flags.Resolve());
  if (!flags.figure.empty() &&
      (flags.generate.decode_tokens == 0 || !flags.profile.empty()))
    return UsageError("--figure needs decode speeds: --generate, no --profile");
  if (!flags.profile.empty()) {
    KVMIX_ASSIGN_OR_RETURN(const ProfileBenchReport report,
                           RunProfileBench(flags.observe, &stop));
    std::cout << FormatProfileBench(report, output);
    return absl::OkStatus();
  }
  KVMIX_ASSIGN_OR_RETURN(BenchReport report, RunBench(flags.generate, &stop));
  report.command = absl::StrCat("kvmix bench ", absl::StrJoin(args, " "));
  std::cout << FormatBench(report, output);
  if (flags.figure.empty()) return absl::OkStatus();
  return WriteFileAtomically(ResolvePath(flags.figure), BenchFigureSvg(report));
}

}  // namespace kvmix
