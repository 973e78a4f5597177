#include "experiments/bench/bench.h"

#include <malloc.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "experiments/bench/bench_methods.h"
#include "experiments/bench/random_states.h"
#include "experiments/bench/throughput.h"
#include "experiments/loaded_model.h"
#include "experiments/machine.h"
#include "experiments/observe_prompts.h"
#include "experiments/timed_passes.h"
#include "kvmix/base/progress_bar.h"
#include "kvmix/base/read_bandwidth.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"
#include "kvmix/importance/importance_estimator.h"
#include "models/transformer_weights.h"

namespace kvmix {
namespace {

// A model that computes with one number of threads.
struct BenchModel {
  std::unique_ptr<Transformer> transformer;
  int threads() const { return transformer->threads().num_threads(); }
};

// A row and what its repetitions gave.
struct Measured {
  BenchRow row;
  BenchModel* model = nullptr;
  const RunnableMethod* method = nullptr;
  std::vector<double> prefill, decode;  // tokens per second
};

absl::Status ValidateAll(const std::vector<int64_t>& values, int64_t low,
                         int64_t high, const char* flag) {
  if (values.empty())
    return absl::InvalidArgumentError(absl::StrCat(flag, " is empty"));
  for (const int64_t value : values)
    KVMIX_RETURN_IF_ERROR(ValidateIsInRange(value, low, high, flag));
  return absl::OkStatus();
}

absl::Status Validate(const BenchOptions& options) {
  KVMIX_RETURN_IF_ERROR(ValidateBenchModel(options));
  if (options.model.device() != ModelSource::CPU) {
    return absl::UnimplementedError(
        "prefill and decode at a depth are measured on the CPU; add "
        "--throughput, or remove --device");
  }
  if (options.memory_limit != 0 ||
      absl::c_linear_search(options.batches, kLargestBatch)) {
    return absl::InvalidArgumentError(
        "--batch=max and --memory_limit need --throughput");
  }
  if (options.methods.empty())
    return absl::InvalidArgumentError("--kv is empty");
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(options.prompt_tokens, 0, 1 << 20, "--prompt"));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(options.decode_tokens, 0, 1 << 20, "--generate"));
  if (options.prompt_tokens == 0 && options.decode_tokens == 0) {
    return absl::InvalidArgumentError(
        "--prompt and --generate are both 0: nothing to measure");
  }
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(options.repeat, 1, 1000, "--repeat"));
  KVMIX_RETURN_IF_ERROR(ValidateAll(options.depths, 0, 1 << 24, "--depth"));
  KVMIX_RETURN_IF_ERROR(ValidateAll(options.batches, 1, 1024, "--batch"));
  return ValidateAll(options.threads, 0, 1024, "--threads");
}

absl::Status ValidateFitsContext(const BenchOptions& options,
                                 int64_t max_position) {
  const int64_t deepest =
      *std::max_element(options.depths.begin(), options.depths.end());
  const int64_t more = std::max(options.prompt_tokens, options.decode_tokens);
  if (deepest + more <= max_position) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "--depth ", deepest, " and ", more, " tokens of --prompt or --generate ",
      "do not fit in the model's context of ", max_position));
}

// All weights but the input embedding, of which a step reads single rows.
int64_t WeightBytesOfAStep(const Transformer& model) {
  const Transformer::Weights& weights = model.weights();
  return weights.embedding == weights.lm_head
             ? model.weight_bytes()
             : model.weight_bytes() - weights.embedding->bytes();
}

int64_t UsedBytes(const LedgerSide& side) {
  return side.codes + side.scales + side.zeros + side.side_data + side.sinks +
         side.window;
}

// Bytes of the caches that attention reads.
int64_t ReadBytes(const CacheBatch& caches, int64_t sliding_window) {
  double bytes = 0;
  for (const auto& cache : caches) {
    const MemoryLedger ledger = cache->ledger();
    const int64_t tokens = cache->num_tokens(0);
    const double visible =
        sliding_window > 0 && tokens > sliding_window
            ? static_cast<double>(sliding_window) / static_cast<double>(tokens)
            : 1;
    bytes += visible * static_cast<double>(UsedBytes(ledger.key) +
                                           UsedBytes(ledger.value));
  }
  return static_cast<int64_t>(bytes);
}

class Bench {
 public:
  Bench(const BenchOptions& options, const std::atomic<bool>* stop)
      : options_(options), stop_(stop) {}

  absl::StatusOr<BenchReport> Run() {
    KVMIX_RETURN_IF_ERROR(Validate(options_));
    KVMIX_RETURN_IF_ERROR(LoadModels());
    MakeRows();
    ProgressBar bar("bench",
                    static_cast<int64_t>(options_.repeat * rows_.size()),
                    "measurements");
    for (int round = 0; round < options_.repeat; ++round) {
      KVMIX_RETURN_IF_ERROR(MeasureBandwidth());
      for (Measured& measured : rows_) {
        KVMIX_RETURN_IF_ERROR(AddContext(Measure(measured), Name(measured)));
        bar.Advance();
      }
    }
    KVMIX_RETURN_IF_ERROR(MeasureBandwidth());
    return Report();
  }

 private:
  absl::Status CheckStop() const {
    if (stop_ != nullptr && *stop_) return absl::CancelledError("interrupted");
    return absl::OkStatus();
  }

  absl::Status LoadModels() {
    for (const int64_t threads : options_.threads) {
      KVMIX_RETURN_IF_ERROR(CheckStop());
      BenchModel model;
      KVMIX_ASSIGN_OR_RETURN(model.transformer,
                             LoadBenchTransformer(options_, threads));
      // Wrong names should be said before more is loaded and measured.
      if (models_.empty())
        KVMIX_RETURN_IF_ERROR(MakeMethods(*model.transformer));
      models_.push_back(std::move(model));
    }
    bandwidth_.push_back({1, 0});
    for (const BenchModel& model : models_)
      if (BandwidthOf(model.threads()) == nullptr)
        bandwidth_.push_back({model.threads(), 0});
    return absl::OkStatus();
  }

  absl::Status MakeMethods(const Transformer& model) {
    KVMIX_RETURN_IF_ERROR(
        ValidateFitsContext(options_, model.config().max_position));
    for (const std::string& name : options_.methods) {
      KVMIX_ASSIGN_OR_RETURN(RunnableMethod method,
                             MakeBenchMethod(name, model.cache_shape()));
      KVMIX_RETURN_IF_ERROR(MakeCache(model, method).status());
      methods_.push_back(std::move(method));
    }
    return absl::OkStatus();
  }

  // Before every round of rows and after the last, the fastest of all: on a
  // machine that is shared, bandwidth changes by the minute.
  absl::Status MeasureBandwidth() {
    for (BenchBandwidth& read : bandwidth_) {
      KVMIX_RETURN_IF_ERROR(CheckStop());
      ThreadPool threads(read.threads);
      if (options_.pin_threads) KVMIX_RETURN_IF_ERROR(threads.Pin());
      KVMIX_ASSIGN_OR_RETURN(const double bytes_per_second,
                             MeasureReadBandwidth(threads));
      read.bytes_per_second = std::max(read.bytes_per_second, bytes_per_second);
    }
    return absl::OkStatus();
  }

  // Null if it is not measured.
  const BenchBandwidth* BandwidthOf(int num_threads) const {
    for (const BenchBandwidth& read : bandwidth_)
      if (read.threads == num_threads) return &read;
    return nullptr;
  }

  void MakeRows() {
    const Transformer& first = *models_[0].transformer;
    states_ = std::make_unique<RandomStates>(first.cache_shape(), kBenchSeed);
    prompt_ =
        RandomTokens(options_.prompt_tokens, 1, first.config().vocab_size);
    for (BenchModel& model : models_) {
      for (const int64_t depth : options_.depths)
        for (const int64_t batch : options_.batches)
          for (const RunnableMethod& method : methods_)
            AddRow(model, depth, batch, method);
    }
  }

  void AddRow(BenchModel& model, int64_t depth, int64_t batch,
              const RunnableMethod& method) {
    Measured measured;
    measured.row.method = method.name;
    measured.row.depth = depth;
    measured.row.batch = batch;
    measured.row.threads = model.threads();
    measured.model = &model;
    measured.method = &method;
    rows_.push_back(std::move(measured));
  }

  static std::string Name(const Measured& measured) {
    return absl::StrCat(measured.row.method, " at depth ", measured.row.depth,
                        ", batch ", measured.row.batch);
  }

  // One cache a sequence, each of `depth` tokens.
  absl::StatusOr<CacheBatch> FilledCaches(const Measured& measured) {
    CacheBatch caches(measured.row.batch);
    for (auto& cache : caches) {
      KVMIX_ASSIGN_OR_RETURN(
          cache, MakeCache(*measured.model->transformer, *measured.method));
    }
    std::vector<absl::Status> filled(caches.size());
    measured.model->transformer->threads().ParallelFor(
        static_cast<int64_t>(caches.size()), [&](int64_t i, int) {
          filled[i] = states_->Append(measured.row.depth, static_cast<int>(i),
                                      *caches[i]);
        });
    for (const absl::Status& status : filled) KVMIX_RETURN_IF_ERROR(status);
    return caches;
  }

  absl::Status Measure(Measured& measured) {
    if (options_.prompt_tokens > 0)
      KVMIX_RETURN_IF_ERROR(MeasurePrefill(measured));
    if (options_.decode_tokens > 0)
      KVMIX_RETURN_IF_ERROR(MeasureDecode(measured));
    return absl::OkStatus();
  }

  // The caches of a row, which the first time tell their size.
  absl::StatusOr<CacheBatch> SizedCaches(Measured& measured) {
    KVMIX_RETURN_IF_ERROR(CheckStop());
    // What was freed before must not hide what is allocated now.
    malloc_trim(0);
    const int64_t before = ResidentBytes();
    KVMIX_ASSIGN_OR_RETURN(CacheBatch caches, FilledCaches(measured));
    BenchRow& row = measured.row;
    if (row.cache_bytes > 0) return caches;
    row.resident_bytes = ResidentBytes() - before;
    row.kernels = AttentionKernels(
        *caches[0], ArithmeticOf(options_.model.attention_arithmetic()));
    for (const auto& cache : caches) row.cache_bytes += cache->ledger().total();
    return caches;
  }

  absl::Status MeasurePrefill(Measured& measured) {
    KVMIX_ASSIGN_OR_RETURN(const CacheBatch caches, SizedCaches(measured));
    std::vector<int32_t> next;
    KVMIX_ASSIGN_OR_RETURN(
        const double seconds,
        TimePrefill(*measured.model->transformer, caches, prompt_, next));
    const double tokens =
        static_cast<double>(measured.row.batch * options_.prompt_tokens);
    measured.prefill.push_back(tokens / seconds);
    return absl::OkStatus();
  }

  absl::Status MeasureDecode(Measured& measured) {
    Transformer& model = *measured.model->transformer;
    KVMIX_ASSIGN_OR_RETURN(const CacheBatch caches, SizedCaches(measured));
    const int64_t window = model.config().sliding_window;
    const int64_t before = ReadBytes(caches, window);
    std::vector<int32_t> next(caches.size(), 1);
    KVMIX_ASSIGN_OR_RETURN(
        const double seconds,
        TimeDecode(model, caches, options_.decode_tokens, next));
    measured.decode.push_back(
        static_cast<double>(measured.row.batch * options_.decode_tokens) /
        seconds);
    // The mean step sees half of what was added.
    measured.row.decode_bytes =
        WeightBytesOfAStep(model) + (before + ReadBytes(caches, window)) / 2;
    return absl::OkStatus();
  }

  void Summarize(Measured& measured) const {
    BenchRow& row = measured.row;
    if (!measured.prefill.empty()) row.prefill = SpreadOf(measured.prefill);
    if (measured.decode.empty()) return;
    row.decode = SpreadOf(measured.decode);
    const double steps = row.decode.median / static_cast<double>(row.batch);
    row.bandwidth_share =
        static_cast<double>(row.decode_bytes) * steps /
        BandwidthOf(measured.model->threads())->bytes_per_second;
  }

  BenchReport Report() {
    BenchReport report = DescribeBench(options_);
    report.weight_bytes = models_[0].transformer->weight_bytes();
    report.bandwidth = bandwidth_;
    std::sort(report.bandwidth.begin(), report.bandwidth.end(),
              [](const BenchBandwidth& a, const BenchBandwidth& b) {
                return a.threads < b.threads;
              });
    for (Measured& measured : rows_) {
      Summarize(measured);
      report.rows.push_back(measured.row);
    }
    return report;
  }

  const BenchOptions& options_;
  const std::atomic<bool>* const stop_;
  std::vector<BenchBandwidth> bandwidth_;
  std::vector<BenchModel> models_;
  std::vector<RunnableMethod> methods_;
  std::unique_ptr<RandomStates> states_;
  std::vector<int32_t> prompt_;
  std::vector<Measured> rows_;
};

absl::Status Validate(const ProfileBenchOptions& options) {
  KVMIX_RETURN_IF_ERROR(ValidateBenchModel(options));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(options.prompts, 1, 1 << 20, "--profile_prompts"));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(options.prompt_tokens, 2, 1 << 20, "--profile_tokens"));
  return ValidateAll(options.threads, 0, 1024, "--threads");
}

absl::StatusOr<ProfileBenchRow> MeasureProfile(Transformer& model,
                                               const Prompts& prompts,
                                               const std::string& name,
                                               const std::atomic<bool>* stop) {
  Component component;
  component.set_name(name);
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<ImportanceEstimator> estimator,
                         Registry<ImportanceEstimator>::Get().Make(
                             component, "importance_estimator"));
  if (estimator->RequiredSignals().empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "importance_estimator \"", name,
        "\" looks at no prompt, so that there is nothing to measure"));
  }
  if (estimator->NeedsFormats()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "importance_estimator \"", name,
        "\" measures formats; kvmix compare_estimators says what it costs"));
  }
  KVMIX_RETURN_IF_ERROR(estimator->Start(
      {.num_layers = model.config().num_layers, .seed = kBenchSeed}));
  KVMIX_ASSIGN_OR_RETURN(const Observation seen,
                         ObservePrompts({.cpu = &model}, prompts, *estimator,
                                        {.time_forward = true, .stop = stop}));
  ProfileBenchRow row;
  row.estimator = name;
  row.threads = model.threads().num_threads();
  row.prompts = static_cast<int>(prompts.size());
  row.prompt_tokens = static_cast<int>(prompts[0].size());
  std::vector<double> ratios;
  for (size_t i = 0; i < prompts.size(); ++i) {
    row.forward_seconds += seen.forward_seconds[i];
    row.profile_seconds += seen.profile_seconds[i];
    ratios.push_back(seen.profile_seconds[i] / seen.forward_seconds[i]);
  }
  row.ratio = SpreadOf(ratios);
  return row;
}

}  // namespace

BenchReport DescribeBench(const BenchOptions& options) {
  BenchReport report;
  report.throughput = options.throughput;
  report.prompt_tokens = options.prompt_tokens;
  report.decode_tokens = options.decode_tokens;
  report.model = BenchModelName(options);
  report.device = ModelSource::Device_Name(options.model.device());
  report.compute = ModelSource::Compute_Name(options.model.compute());
  report.arithmetic =
      AttentionConfig::Arithmetic_Name(options.model.attention_arithmetic());
  return report;
}

absl::StatusOr<ProfileBenchReport> RunProfileBench(
    const ProfileBenchOptions& options, const std::atomic<bool>* stop) {
  KVMIX_RETURN_IF_ERROR(Validate(options));
  ProfileBenchReport report;
  report.model = BenchModelName(options);
  report.compute = ModelSource::Compute_Name(options.model.compute());
  for (const int64_t threads : options.threads) {
    KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<Transformer> model,
                           LoadBenchTransformer(options, threads));
    Prompts prompts;
    for (int i = 0; i < options.prompts; ++i) {
      prompts.push_back(RandomTokens(options.prompt_tokens, 2 + i,
                                     model->config().vocab_size));
    }
    for (const std::string& estimator : options.estimators) {
      KVMIX_ASSIGN_OR_RETURN(ProfileBenchRow row,
                             MeasureProfile(*model, prompts, estimator, stop));
      report.rows.push_back(std::move(row));
    }
  }
  return report;
}

absl::StatusOr<BenchReport> RunBench(const BenchOptions& options,
                                     const std::atomic<bool>* stop) {
  if (options.throughput) return RunThroughput(options, stop);
  return Bench(options, stop).Run();
}

}  // namespace kvmix
