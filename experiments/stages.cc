#include "experiments/stages.h"

#include <memory>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "experiments/continue_window.h"
#include "experiments/paths.h"
#include "experiments/sweep/file_lock.h"
#include "experiments/text_proto.h"
#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/base/file.h"
#include "kvmix/base/fingerprint.h"
#include "kvmix/base/progress_bar.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/importance/importance_estimator.h"
#include "kvmix/importance/query_energy.h"

namespace kvmix {
namespace {

// sees_queries: profiles of versions that did not look at them before RoPE have
// other keys.
std::string ProfileKey(const StoredProfile& profile, bool sees_queries) {
  return Fingerprint(absl::StrCat(
      profile.model(), "\n", profile.prompts(), "\n", profile.estimator(), "\n",
      profile.seed(), "\n", PrintTextProto(profile.formats()), "\n",
      profile.trial_chunk_tokens(),
      profile.device().empty() ? "" : "\n" + profile.device(),
      profile.granularity() == CachePlan::HEAD ? "\nHEAD" : "",
      sees_queries ? "\nqueries after and before RoPE" : "",
      profile.full_precision() == CachePlan::HALF
          ? ""
          : "\n" + CachePlan::FullPrecision_Name(profile.full_precision())));
}

double Sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

std::string WindowPath(const EvaluateRequest& request, size_t window) {
  return absl::StrFormat("%s/%d_%05d.pb", request.folder, request.dataset,
                         window);
}

// The window's record if it is on disk and belongs to this experiment.
bool ReadWindow(const EvaluateRequest& request, size_t window,
                WindowRecord& record) {
  if (request.folder.empty()) return false;
  const absl::StatusOr<std::string> bytes =
      ReadFile(WindowPath(request, window));
  return bytes.ok() && record.ParseFromString(*bytes) &&
         record.fingerprint() == request.fingerprint &&
         record.dataset() == request.dataset &&
         record.window() == static_cast<int>(window) &&
         record.method_size() == static_cast<int>(request.methods.size());
}

// Scored token by token, or continued.
absl::StatusOr<WindowRecord> RunWindow(LoadedModel& model,
                                       const EvaluateRequest& request,
                                       const Window& window,
                                       ThreadPool& threads) {
  absl::StatusOr<WindowRecord> record =
      window.continue_tokens > 0
          ? ContinueWindow(model.where_to_run(), request.methods, window,
                           request.evaluation, model.tokenizer->eos_ids(),
                           request.stop, request.store)
          : EvaluateWindow(model.where_to_run(), request.methods, window,
                           request.evaluation, threads, request.stop,
                           request.store);
  if (!record.ok()) return record;
  record->set_group(window.group);
  record->set_item(window.item + 1);
  record->set_right_choice(window.right_choice);
  record->set_choice_length(window.choice_length);
  record->set_context_tokens(window.context_tokens);
  record->set_depth(window.depth);
  return record;
}

absl::Status KeepWindow(const EvaluateRequest& request, size_t window,
                        WindowRecord& record) {
  record.set_fingerprint(request.fingerprint);
  record.set_dataset(request.dataset);
  record.set_window(static_cast<int>(window));
  if (request.folder.empty()) return absl::OkStatus();
  return WriteFileAtomically(WindowPath(request, window),
                             record.SerializeAsString());
}

std::string PoliciesText(const Method& method) {
  std::string text = PrintTextProto(method.recency_policy()) +
                     PrintTextProto(method.eviction_policy());
  if (method.full_precision() != CachePlan::HALF)
    text += CachePlan::FullPrecision_Name(method.full_precision());
  return text;
}

absl::StatusOr<ImportanceProfile> ObserveQueries(
    LoadedModel& model, const Prompts& prompts, const ProfileRequest& request) {
  const ModelConfig& config = model.transformer->config();
  QueryEnergy queries;
  KVMIX_RETURN_IF_ERROR(queries.Start(
      {.num_layers = config.num_layers, .head_dim = config.head_dim}));
  KVMIX_RETURN_IF_ERROR(
      ObservePrompts(model.where_to_run(), prompts, queries,
                     {.title = "queries", .stop = request.stop})
          .status());
  return queries.Finish();
}

}  // namespace

ProfileRequest ProfileRequestOf(const ExperimentConfig& config,
                                const LoadedModel& model,
                                const Component& estimator,
                                FormatChoices formats,
                                CachePlan::Granularity granularity,
                                const std::atomic<bool>* stop) {
  return {.estimator = estimator,
          .formats = std::move(formats),
          .granularity = granularity,
          .trial_chunk_tokens = config.profile().trial_chunk_tokens(),
          .full_precision = config.full_precision(),
          .prompts =
              [&config, &model] {
                return LoadPrompts(config, *model.tokenizer,
                                   model.max_position());
              },
          .seed = config.seed(),
          .folder = ResolvePath(config.profile().folder().empty()
                                    ? config.output() + "/profiles"
                                    : config.profile().folder()),
          .stop = stop};
}

absl::StatusOr<StoredProfile> Profile(LoadedModel& model,
                                      const ProfileRequest& request) {
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<ImportanceEstimator> estimator,
                         Registry<ImportanceEstimator>::Get().Make(
                             request.estimator, "importance_estimator"));
  const bool needs_model = estimator->NeedsModel();
  Prompts prompts;
  if (needs_model) {
    KVMIX_ASSIGN_OR_RETURN(prompts, request.prompts());
  }
  StoredProfile stored;
  stored.set_model(model.fingerprint);
  stored.set_prompts(FingerprintOf(prompts));
  stored.set_estimator(PrintTextProto(request.estimator));
  stored.set_seed(request.seed);
  bool sees_queries = false;
  if (estimator->NeedsFormats()) {
    *stored.mutable_formats() = request.formats;
    stored.set_granularity(request.granularity);
    KVMIX_ASSIGN_OR_RETURN(sees_queries, WantQueryEnergy(request.formats));
  }
  if (estimator->NeedsTrials()) {
    stored.set_trial_chunk_tokens(request.trial_chunk_tokens);
    stored.set_full_precision(request.full_precision);
  }
  if (needs_model && model.device != nullptr) stored.set_device("CUDA");
  stored.set_key(ProfileKey(stored, sees_queries));
  const std::string path =
      absl::StrCat(request.folder, "/", stored.key(), ".textproto");
  StoredProfile on_disk;
  // Another process that makes the same profile is waited for.
  std::optional<FileLock> lock;
  if (!request.folder.empty()) {
    KVMIX_ASSIGN_OR_RETURN(lock, FileLock::Wait(absl::StrCat(
                                     request.folder, ".locks/", stored.key())));
  }
  if (!request.folder.empty() && ReadTextProto(path, on_disk).ok() &&
      on_disk.key() == stored.key()) {
    on_disk.clear_seconds();
    on_disk.clear_forward_seconds();
    return on_disk;
  }
  const ModelConfig& config = model.transformer->config();
  KVMIX_RETURN_IF_ERROR(estimator->Start(
      {.num_layers = config.num_layers,
       .seed = request.seed,
       .head_dim = config.head_dim,
       .formats = estimator->NeedsFormats() ? &request.formats : nullptr,
       .granularity = request.granularity,
       .num_kv_heads = config.num_kv_heads}));
  ImportanceProfile queries;
  if (needs_model) {
    if (sees_queries) {
      KVMIX_ASSIGN_OR_RETURN(queries, ObserveQueries(model, prompts, request));
    }
    KVMIX_ASSIGN_OR_RETURN(
        const Observation seen,
        ObservePrompts(model.where_to_run(), prompts, *estimator,
                       {.time_forward = request.time_forward,
                        .trial_chunk_tokens = request.trial_chunk_tokens,
                        .full_precision = request.full_precision,
                        .calibration = &queries,
                        .stop = request.stop}));
    stored.set_mean_loss(seen.mean_loss);
    stored.set_seconds(Sum(seen.profile_seconds));
    stored.set_forward_seconds(Sum(seen.forward_seconds));
  }
  KVMIX_ASSIGN_OR_RETURN(*stored.mutable_profile(), estimator->Finish());
  for (int l = 0; l < queries.layer_size(); ++l) {
    LayerImportance& layer = *stored.mutable_profile()->mutable_layer(l);
    *layer.mutable_query_energy() = queries.layer(l).query_energy();
    *layer.mutable_query_energy_before_rope() =
        queries.layer(l).query_energy_before_rope();
  }
  if (!request.folder.empty())
    KVMIX_RETURN_IF_ERROR(WriteTextProto(stored, path));
  return stored;
}

absl::StatusOr<bool> NeedsProfile(const Method& method) {
  if (method.has_plan()) return false;
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<BitAllocator> allocator,
                         Registry<BitAllocator>::Get().Make(
                             method.bit_allocator(), "bit_allocator"));
  return allocator->NeedsProfile();
}

absl::StatusOr<FormatChoices> FormatsToProfile(const Method& method,
                                               int head_dim) {
  KVMIX_ASSIGN_OR_RETURN(
      const std::unique_ptr<ImportanceEstimator> estimator,
      Registry<ImportanceEstimator>::Get().Make(method.importance_estimator(),
                                                "importance_estimator"));
  if (!estimator->NeedsFormats()) return FormatChoices();
  return OfferedFormats(method, head_dim);
}

absl::StatusOr<std::unique_ptr<BudgetedFormats>> FormatsUnderBudget(
    const Method& method, const CacheShape& shape,
    const Evaluation& evaluation) {
  if (!method.has_budget()) return nullptr;
  auto formats = std::make_unique<BudgetedFormats>();
  KVMIX_ASSIGN_OR_RETURN(formats->choices,
                         OfferedFormats(method, shape.head_dim));
  const int64_t context = method.budget().context_length();
  if (context > 0) {
    KVMIX_ASSIGN_OR_RETURN(std::shared_ptr<const RecencyPolicy> recency,
                           Registry<RecencyPolicy>::Get().Make(
                               method.recency_policy(), "recency_policy"));
    formats->costs = std::make_unique<MeasuredCosts>(
        shape, ChunkLengths(evaluation, context, /*prompt_tokens=*/context),
        std::move(recency), method.full_precision());
  } else {
    formats->costs = std::make_unique<BlockCosts>(
        shape.num_kv_heads, shape.head_dim, method.full_precision());
  }
  KVMIX_ASSIGN_OR_RETURN(
      formats->budget_bytes,
      BudgetBytes(method.budget(), shape.num_layers, *formats->costs));
  return formats;
}

absl::StatusOr<RunnableMethod> Allocate(const Method& method,
                                        const ImportanceProfile& profile,
                                        const CacheShape& shape,
                                        const Evaluation& evaluation,
                                        uint64_t seed,
                                        const TrialSetting* trials) {
  RunnableMethod runnable;
  runnable.name = method.name();
  KVMIX_ASSIGN_OR_RETURN(
      const std::unique_ptr<Quantizer> quantizer,
      Registry<Quantizer>::Get().Make(method.quantizer(), "quantizer"));
  KVMIX_ASSIGN_OR_RETURN(runnable.recency,
                         Registry<RecencyPolicy>::Get().Make(
                             method.recency_policy(), "recency_policy"));
  KVMIX_ASSIGN_OR_RETURN(runnable.eviction,
                         Registry<EvictionPolicy>::Get().Make(
                             method.eviction_policy(), "eviction_policy"));
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<BudgetedFormats> formats,
                         FormatsUnderBudget(method, shape, evaluation));
  const auto within_budget = [&]() -> absl::StatusOr<RunnableMethod> {
    if (formats != nullptr) {
      KVMIX_RETURN_IF_ERROR(
          CheckBudget(runnable.plan, formats->budget_bytes, *formats->costs));
    }
    return std::move(runnable);
  };
  if (method.has_plan()) {
    runnable.plan = method.plan();
    return within_budget();
  }
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<BitAllocator> allocator,
                         Registry<BitAllocator>::Get().Make(
                             method.bit_allocator(), "bit_allocator"));
  AllocationContext context = {.num_layers = shape.num_layers,
                               .num_kv_heads = shape.num_kv_heads,
                               .head_dim = shape.head_dim,
                               .granularity = method.granularity(),
                               .seed = seed,
                               .quantizer = quantizer.get()};
  if (formats != nullptr) {
    context.choices = &formats->choices;
    context.costs = formats->costs.get();
    context.budget_bytes = formats->budget_bytes;
  }
  runnable.plan.set_full_precision(method.full_precision());  // for trials
  std::optional<ModelPlanEvaluator> evaluator;
  if (trials != nullptr) {
    context.evaluator =
        &evaluator.emplace(*trials, runnable, PoliciesText(method), profile);
  }
  KVMIX_ASSIGN_OR_RETURN(runnable.plan, allocator->Allocate(profile, context));
  runnable.plan.set_full_precision(method.full_precision());
  KVMIX_RETURN_IF_ERROR(CalibratePlan(profile, runnable.plan));
  return within_budget();
}

absl::StatusOr<std::vector<WindowRecord>> Evaluate(
    LoadedModel& model, const EvaluateRequest& request, int* evaluated) {
  ProgressBar bar(absl::StrCat("evaluate ", request.name),
                  static_cast<int64_t>(request.windows.size()), "windows");
  ThreadPool threads(model.transformer->threads().num_threads());
  std::vector<WindowRecord> records(request.windows.size());
  for (size_t i = 0; i < request.windows.size(); ++i) {
    if (ReadWindow(request, i, records[i])) {
      bar.AdvanceFinished();
      continue;
    }
    absl::StatusOr<WindowRecord> record =
        RunWindow(model, request, request.windows[i], threads);
    if (!record.ok()) {
      return AddContext(record.status(),
                        absl::StrCat("dataset ", request.name, " window ", i,
                                     " of ", request.windows.size()));
    }
    records[i] = *std::move(record);
    KVMIX_RETURN_IF_ERROR(KeepWindow(request, i, records[i]));
    ++*evaluated;
    bar.Advance();
  }
  return records;
}

}  // namespace kvmix
