#include "experiments/run_experiment.h"

#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/attention.h"
#include "experiments/config.h"
#include "experiments/machine.h"
#include "experiments/metrics.h"
#include "experiments/paths.h"
#include "experiments/report.h"
#include "experiments/speed.h"
#include "experiments/tasks/summaries.h"
#include "experiments/tasks/task.h"
#include "experiments/text_proto.h"
#include "kvmix/base/cuda_devices.h"
#include "kvmix/base/fingerprint.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/budget.h"
#include "kvmix/cache_plan.h"

namespace kvmix {
namespace {

// Part of every fingerprint; to be raised when the meaning of results changes,
// so that old windows are not taken for new ones.
constexpr int kResultVersion = 3;

using DatasetWindows = std::vector<std::vector<Window>>;

absl::StatusOr<DatasetWindows> LoadDatasets(const ExperimentConfig& config,
                                            const LoadedModel& model) {
  DatasetWindows all;
  for (const Dataset& dataset : config.dataset()) {
    KVMIX_ASSIGN_OR_RETURN(std::vector<Window> windows,
                           LoadWindows(dataset, config.seed(), *model.tokenizer,
                                       model.max_position()));
    all.push_back(std::move(windows));
  }
  return all;
}

std::string ExperimentFingerprint(const ExperimentConfig& config,
                                  const LoadedModel& model,
                                  const DatasetWindows& datasets,
                                  const PreparedMethods& prepared) {
  std::string text = absl::StrCat(kResultVersion, "\n", ConfigText(config),
                                  model.fingerprint, "\n");
  for (const std::vector<Window>& windows : datasets) {
    std::vector<std::vector<int32_t>> tokens;
    for (const Window& window : windows) {
      tokens.push_back(window.tokens);
      // What a text or a synthetic document leaves empty.
      absl::StrAppend(&text, window.group, window.reference);
      if (window.item >= 0)
        absl::StrAppend(&text, window.item, window.right_choice);
    }
    absl::StrAppend(&text, FingerprintOf(tokens), "\n");
  }
  for (const std::string& key : prepared.profile_of)
    absl::StrAppend(&text, key, "\n");
  return Fingerprint(text);
}

// A method's name as part of a file name.
std::string FileName(std::string name) {
  for (char& c : name) {
    if (!absl::ascii_isalnum(c) && c != '.' && c != '-') c = '_';
  }
  return name;
}

absl::Status WritePlans(const ExperimentConfig& config,
                        const PreparedMethods& prepared,
                        const std::string& folder) {
  KVMIX_RETURN_IF_ERROR(
      WriteTextProto(config, absl::StrCat(folder, "/config.textproto")));
  for (const StoredProfile& profile : prepared.profiles) {
    StoredProfile untimed = profile;
    untimed.clear_seconds();
    untimed.clear_forward_seconds();
    KVMIX_RETURN_IF_ERROR(WriteTextProto(
        untimed,
        absl::StrCat(folder, "/profile_", profile.key(), ".textproto")));
  }
  for (const RunnableMethod& method : prepared.methods) {
    KVMIX_RETURN_IF_ERROR(WriteTextProto(
        method.plan,
        absl::StrCat(folder, "/plan_", FileName(method.name), ".textproto")));
  }
  return absl::OkStatus();
}

// Errors: a cache that cannot be made.
absl::StatusOr<AttentionOf> AttentionOfMethod(const ModelSource& source,
                                              const LoadedModel& model,
                                              const RunnableMethod& method) {
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<KvCache> cache,
                         MakeCache(*model.transformer, method));
  if (model.device == nullptr) {
    return AttentionOf{.kernels = AttentionKernels(
                           *cache, ArithmeticOf(source.attention_arithmetic())),
                       .why_on_host = ""};
  }
  KVMIX_ASSIGN_OR_RETURN(
      const std::unique_ptr<DeviceSequences> sequences,
      MakeSequences(*model.device, method, {.max_tokens = 1}));
  return AttentionOf{.kernels = sequences->AttentionKernels(),
                     .why_on_host = sequences->WhyOnHost()};
}

// Everything of the record that is known before quality is measured.
absl::StatusOr<RunRecord> StartRecord(const ExperimentConfig& config,
                                      const LoadedModel& model,
                                      const PreparedMethods& prepared) {
  RunRecord record;
  record.set_name(config.name());
  record.set_seed(config.seed());
  record.set_mode(ModeText(config.evaluation()));
  ModelRecord& shape = *record.mutable_model();
  shape.set_path(config.model().path());
  shape.set_fingerprint(model.fingerprint);
  const ModelConfig& model_config = model.transformer->config();
  shape.set_num_layers(model_config.num_layers);
  shape.set_num_kv_heads(model_config.num_kv_heads);
  shape.set_head_dim(model_config.head_dim);
  shape.set_weight_bytes(model.device != nullptr
                             ? model.device->weight_bytes()
                             : model.transformer->weight_bytes());
  shape.set_compute(ModelSource::Compute_Name(config.model().compute()));
  shape.set_device(ModelSource::Device_Name(config.model().device()));
  shape.set_attention_arithmetic(
      AttentionConfig::Arithmetic_Name(config.model().attention_arithmetic()));
  for (size_t m = 0; m < prepared.methods.size(); ++m) {
    const RunnableMethod& method = prepared.methods[m];
    MethodRecord& row = *record.add_method();
    row.set_name(method.name);
    row.set_profile(prepared.profile_of[m]);
    *row.mutable_plan() = method.plan;
    row.set_attention_kernels(prepared.attention[m].kernels);
    row.set_why_on_host(prepared.attention[m].why_on_host);
    KVMIX_ASSIGN_OR_RETURN(const PlanBits bits,
                           BitsOfPlan(method.plan, model_config.head_dim));
    row.set_key_nominal_bits(bits.key.nominal);
    row.set_value_nominal_bits(bits.value.nominal);
  }
  return record;
}

absl::Status CheckIsFullPrecision(const RunnableMethod& method) {
  if (IsFullPrecision(method.plan)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "method[0] (", method.name,
      ") has fewer than 16 bits, but the first method is what the others are "
      "compared with; put a full-precision one first, as bit_allocator { "
      "name: \"uniform\" options { [type.googleapis.com/kvmix.UniformOptions]"
      " { key_bits: 16 value_bits: 16 } } }"));
}

absl::StatusOr<std::string> MetricOf(const Dataset& dataset) {
  if (!dataset.has_task()) return "";
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<Task> task,
                         Registry<Task>::Get().Make(dataset.task(), "task"));
  return task->metric();
}

void AddDataset(const std::string& name, const std::string& metric,
                absl::Span<const WindowRecord> windows, RunRecord& record) {
  for (int m = 0; m < record.method_size(); ++m) {
    DatasetRecord& dataset = *record.mutable_method(m)->add_dataset();
    dataset.set_name(name);
    *dataset.mutable_quality() = SummarizeQuality(windows, m);
    *dataset.mutable_memory() = SummarizeMemory(windows, m);
    AddTaskSummaries(windows, m, metric, dataset);
  }
}

// Where logits of full precision are kept for other cells; nothing if they
// would take more than the sweep allows.
std::optional<FullPrecisionStore> StoreOf(const ExperimentConfig& config,
                                          const LoadedModel& model,
                                          const DatasetWindows& datasets,
                                          const CellFolders* cell) {
  if (cell == nullptr) return std::nullopt;
  double bytes = 0;
  for (const auto& windows : datasets) {
    for (const Window& window : windows)
      bytes += static_cast<double>(window.tokens.size()) * sizeof(float) *
               model.transformer->config().vocab_size;
  }
  if (bytes > cell->full_precision_gib * (1 << 30)) return std::nullopt;
  Method full = config.method(0);
  full.clear_name();
  return FullPrecisionStore(
      cell->full_precision,
      absl::StrCat(kResultVersion, "\n", model.fingerprint, "\n",
                   PrintTextProto(config.model()), PrintTextProto(full),
                   PrintTextProto(config.evaluation())));
}

absl::Status EvaluateDatasets(const ExperimentConfig& config,
                              const DatasetWindows& datasets,
                              const std::vector<RunnableMethod>& methods,
                              const FullPrecisionStore* store,
                              const std::atomic<bool>* stop, LoadedModel& model,
                              ExperimentResult& result) {
  const absl::Time start = absl::Now();
  int evaluated = 0;
  for (int d = 0; d < config.dataset_size(); ++d) {
    const EvaluateRequest request = {.methods = methods,
                                     .windows = datasets[d],
                                     .evaluation = config.evaluation(),
                                     .fingerprint = result.record.fingerprint(),
                                     .dataset = d,
                                     .name = config.dataset(d).name(),
                                     .folder = result.folder + "/windows",
                                     .stop = stop,
                                     .store = store};
    absl::StatusOr<std::vector<WindowRecord>> windows =
        Evaluate(model, request, &evaluated);
    if (absl::IsCancelled(windows.status())) {
      return absl::CancelledError(absl::StrCat(
          "interrupted; ", evaluated, " windows of this run are kept in ",
          request.folder, ", and the same command goes on from there"));
    }
    if (!windows.ok()) return windows.status();
    KVMIX_ASSIGN_OR_RETURN(const std::string metric,
                           MetricOf(config.dataset(d)));
    AddDataset(config.dataset(d).name(), metric, *windows, result.record);
  }
  result.timings.set_evaluate_seconds(
      absl::ToDoubleSeconds(absl::Now() - start));
  result.timings.set_evaluated_windows(evaluated);
  return absl::OkStatus();
}

absl::Status DescribeMachine(LoadedModel& model, Timings& timings) {
  timings.set_commit(CheckoutCommit());
  timings.set_compiler(CompilerName());
  timings.set_cpu(CpuName());
  timings.set_instruction_set(InstructionSet());
  timings.set_cuda_toolkit(CudaToolkit());
  for (const std::string& device : CudaDevices())
    timings.add_cuda_device(device);
  timings.set_threads(model.transformer->threads().num_threads());
  timings.set_peak_resident_bytes(PeakResidentBytes());
  if (model.device == nullptr) return absl::OkStatus();
  KVMIX_ASSIGN_OR_RETURN(const DeviceMemoryUse use, model.device->MemoryUse());
  DeviceMemoryRecord& memory = *timings.mutable_device_memory();
  memory.set_model(use.model);
  memory.set_passes(use.passes);
  memory.set_in_use(use.in_use);
  return absl::OkStatus();
}

}  // namespace

const ImportanceProfile* PreparedMethods::ProfileOf(size_t m) const {
  for (const StoredProfile& profile : profiles) {
    if (profile.key() == profile_of[m]) return &profile.profile();
  }
  return nullptr;
}

absl::StatusOr<PreparedMethods> PrepareMethods(const ExperimentConfig& config,
                                               LoadedModel& model,
                                               const std::atomic<bool>* stop) {
  const TrialSetting trials = {
      .where = model.where_to_run(),
      .model = absl::StrCat(model.fingerprint, "\n",
                            ModelSource::Compute_Name(config.model().compute()),
                            "\n",
                            AttentionConfig::Arithmetic_Name(
                                config.model().attention_arithmetic())),
      .prompts =
          [&] {
            return LoadPrompts(config, *model.tokenizer, model.max_position());
          },
      .chunk_tokens = config.profile().trial_chunk_tokens(),
      .folder = ResolvePath(config.output()) + "/plan_losses",
      .stop = stop};
  PreparedMethods prepared;
  std::map<std::string, size_t> known;  // estimator and formats -> profile
  for (const Method& method : config.method()) {
    KVMIX_ASSIGN_OR_RETURN(const bool needs_profile, NeedsProfile(method));
    ImportanceProfile scores;
    std::string key;
    if (needs_profile) {
      const Component& estimator = method.importance_estimator();
      absl::StatusOr<FormatChoices> formats =
          FormatsToProfile(method, model.transformer->config().head_dim);
      if (!formats.ok()) {
        return AddContext(formats.status(),
                          absl::StrCat("method ", method.name()));
      }
      const auto [at, is_new] = known.emplace(
          absl::StrCat(PrintTextProto(estimator), PrintTextProto(*formats),
                       method.granularity()),
          prepared.profiles.size());
      if (is_new) {
        KVMIX_ASSIGN_OR_RETURN(
            StoredProfile profile,
            Profile(model, ProfileRequestOf(config, model, estimator, *formats,
                                            method.granularity(), stop)));
        prepared.profiles.push_back(std::move(profile));
      }
      scores = prepared.profiles[at->second].profile();
      key = prepared.profiles[at->second].key();
    }
    absl::StatusOr<RunnableMethod> runnable =
        Allocate(method, scores, model.transformer->cache_shape(),
                 config.evaluation(), config.seed(), &trials);
    if (!runnable.ok()) {
      return AddContext(runnable.status(),
                        absl::StrCat("method ", method.name()));
    }
    // What the cache refuses should be said before the first window runs.
    KVMIX_ASSIGN_OR_RETURN(AttentionOf attention,
                           AttentionOfMethod(config.model(), model, *runnable));
    TellIfOnHost(runnable->name, attention.why_on_host);
    prepared.attention.push_back(std::move(attention));
    prepared.methods.push_back(*std::move(runnable));
    prepared.profile_of.push_back(key);
  }
  return prepared;
}

absl::StatusOr<ExperimentResult> RunExperiment(const ExperimentConfig& config,
                                               const std::atomic<bool>* stop,
                                               const CellFolders* cell) {
  KVMIX_ASSIGN_OR_RETURN(LoadedModel model,
                         LoadModel(config.model(), config.threads()));
  KVMIX_ASSIGN_OR_RETURN(const DatasetWindows datasets,
                         LoadDatasets(config, model));
  KVMIX_ASSIGN_OR_RETURN(const PreparedMethods prepared,
                         PrepareMethods(config, model, stop));
  KVMIX_RETURN_IF_ERROR(CheckIsFullPrecision(prepared.methods[0]));

  ExperimentResult result;
  KVMIX_ASSIGN_OR_RETURN(result.record, StartRecord(config, model, prepared));
  result.record.set_fingerprint(
      ExperimentFingerprint(config, model, datasets, prepared));
  result.folder = cell != nullptr ? cell->results
                                  : absl::StrCat(ResolvePath(config.output()),
                                                 "/", config.name(), "/",
                                                 result.record.fingerprint());
  KVMIX_RETURN_IF_ERROR(WritePlans(config, prepared, result.folder));
  for (const StoredProfile& profile : prepared.profiles) {
    ProfileTiming& timing = *result.timings.add_profile();
    timing.set_key(profile.key());
    timing.set_estimator(profile.profile().estimator());
    timing.set_seconds(profile.seconds());
  }
  const std::optional<FullPrecisionStore> store =
      StoreOf(config, model, datasets, cell);
  KVMIX_RETURN_IF_ERROR(EvaluateDatasets(config, datasets, prepared.methods,
                                         store ? &*store : nullptr, stop, model,
                                         result));
  if (!config.speed().skip()) {
    KVMIX_ASSIGN_OR_RETURN(
        const std::vector<MethodSpeed> speeds,
        MeasureSpeed(model.where_to_run(), prepared.methods, config.speed(),
                     datasets[0][0].tokens, stop));
    result.timings.mutable_speed()->Assign(speeds.begin(), speeds.end());
  }
  KVMIX_RETURN_IF_ERROR(DescribeMachine(model, result.timings));
  KVMIX_RETURN_IF_ERROR(
      Report(config, result.record, result.timings, result.folder));
  return result;
}

std::string Describe(const ExperimentConfig& config) {
  std::string text = absl::StrCat(
      "experiment ", config.name(), ", seed ", config.seed(), ", model ",
      config.model().path(), ", ", ModeText(config.evaluation()), "\n");
  for (const Dataset& dataset : config.dataset()) {
    absl::StrAppend(&text, "dataset ", dataset.name());
    if (dataset.has_task()) {
      absl::StrAppend(&text, ": task ", dataset.task().name(), ", ",
                      dataset.limit() > 0
                          ? absl::StrCat("at most ", dataset.limit())
                          : "all",
                      " samples\n");
    } else if (dataset.has_synthetic()) {
      absl::StrAppend(&text, ": ", dataset.synthetic().documents(),
                      " documents of ", dataset.synthetic().tokens(),
                      " tokens, task ", dataset.synthetic().task(), "\n");
    } else {
      absl::StrAppend(
          &text, ": ", dataset.path(), ", windows of ",
          dataset.context_length(), " tokens, at most ",
          dataset.max_tokens() > 0 ? absl::StrCat(dataset.max_tokens()) : "all",
          " tokens\n");
    }
  }
  for (const Method& method : config.method()) {
    absl::StrAppend(&text, "method ", method.name(), ": ");
    if (method.has_plan()) {
      absl::StrAppend(&text, "a plan of ", method.plan().layer_size(),
                      " layers");
    } else {
      absl::StrAppend(&text,
                      method.has_importance_estimator()
                          ? method.importance_estimator().name() + " > "
                          : "",
                      method.bit_allocator().name());
    }
    absl::StrAppend(&text, ", ", method.quantizer().name(), ", ",
                    method.recency_policy().name(), ", ",
                    method.eviction_policy().name(), "\n");
  }
  return text;
}

}  // namespace kvmix
