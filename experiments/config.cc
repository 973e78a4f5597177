#include "experiments/config.h"

#include <filesystem>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "experiments/field_path.h"
#include "experiments/paths.h"
#include "experiments/tasks/task.h"
#include "experiments/text_proto.h"
#include "google/protobuf/descriptor.h"
#include "kvmix/allocation/bit_allocator.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/base/validators.h"
#include "kvmix/eviction/eviction_policy.h"
#include "kvmix/importance/importance_estimator.h"
#include "kvmix/recency/recency_policy.h"
#include "quant/quantizer.h"

namespace kvmix {
namespace {

// Every other number is refused: a textproto may give an enum as a number.
absl::Status ValidateEnum(bool is_valid, int value, const char* field) {
  if (is_valid) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, ", which has no meaning"));
}

absl::Status ValidateDevice(const ModelSource& model) {
  KVMIX_RETURN_IF_ERROR(
      ValidateEnum(ModelSource::Device_IsValid(model.device()), model.device(),
                   "model.device"));
  if (model.device() == ModelSource::CUDA) {
    if (model.attention_arithmetic() != AttentionConfig::FLOAT) {
      return absl::InvalidArgumentError(
          "model.attention_arithmetic is INT8, which is the CPU's alone; with "
          "model.device CUDA it must be FLOAT");
    }
    if (!model.has_check_against() || model.check_against() == ModelSource::CPU)
      return absl::OkStatus();
    return absl::InvalidArgumentError(
        "model.check_against must be CPU, or not be set");
  }
  if (!model.has_check_against()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "model.check_against is set but model.device is CPU, which is what other "
      "devices are checked against; set model.device to CUDA, or remove it");
}

absl::Status ValidateModel(const ModelSource& model) {
  if (model.path().empty()) {
    return absl::InvalidArgumentError(
        "model.path is empty; give a Hugging Face folder, a .gguf file, "
        "\"embedded\" or \"smollm2\"");
  }
  KVMIX_RETURN_IF_ERROR(
      ValidateEnum(ModelSource::Compute_IsValid(model.compute()),
                   model.compute(), "model.compute"));
  KVMIX_RETURN_IF_ERROR(ValidateEnum(
      AttentionConfig::Arithmetic_IsValid(model.attention_arithmetic()),
      model.attention_arithmetic(), "model.attention_arithmetic"));
  return ValidateDevice(model);
}

// A name becomes a part of a path.
absl::Status ValidateName(const std::string& name, const std::string& field) {
  const bool plain = name.find_first_not_of(
                         "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVW"
                         "XYZ0123456789_.-") == std::string::npos;
  if (!name.empty() && name[0] != '.' && plain) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is \"", name,
                   "\" but must be made of letters, digits, '_', '-' and '.', "
                   "and not start with '.'"));
}

absl::Status ValidateUnique(std::set<std::string>& seen,
                            const std::string& name, const std::string& field) {
  if (seen.insert(name).second) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is \"", name, "\", which an earlier one has"));
}

absl::Status ResolveSynthetic(SyntheticDocuments& synthetic,
                              const std::string& field) {
  const bool asks = synthetic.task() != "story";
  if (synthetic.documents() == 0) synthetic.set_documents(8);
  if (synthetic.tokens() == 0) synthetic.set_tokens(1024);
  if (asks && synthetic.facts() == 0) synthetic.set_facts(32);
  if (asks && synthetic.questions() == 0) synthetic.set_questions(16);
  if (!synthetic.has_confusable()) synthetic.set_confusable(1);
  if (synthetic.copy_length() == 0) synthetic.set_copy_length(12);
  if (synthetic.hops() == 0) synthetic.set_hops(2);
  // The generator checks the rest.
  return ValidateIsInRange(synthetic.documents(), 1, 1 << 20,
                           field + ".documents");
}

absl::Status ResolveDataset(Dataset& dataset, const std::string& field) {
  if (dataset.has_synthetic() + dataset.has_task() + !dataset.path().empty() !=
      1) {
    return absl::InvalidArgumentError(
        absl::StrCat(field,
                     " must have exactly one of path (a text file), synthetic "
                     "and task"));
  }
  KVMIX_RETURN_IF_ERROR(
      ValidateIsNonNegative(dataset.limit(), field + ".limit"));
  if (dataset.limit() > 0 && !dataset.has_task()) {
    return absl::InvalidArgumentError(absl::StrCat(
        field,
        ".limit is for tasks; a text has max_tokens, synthetic has "
        "documents"));
  }
  if (dataset.name().empty()) {
    dataset.set_name(
        dataset.has_task() ? dataset.task().name()
        : dataset.has_synthetic()
            ? dataset.synthetic().task()
            : std::filesystem::path(dataset.path()).stem().string());
  }
  if (dataset.has_task()) {
    return AddContext(
        Registry<Task>::Get().Make(dataset.task(), "task").status(), field);
  }
  if (dataset.has_synthetic()) {
    return ResolveSynthetic(*dataset.mutable_synthetic(), field + ".synthetic");
  }
  if (dataset.context_length() == 0) dataset.set_context_length(1024);
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(dataset.context_length(), 2, 1 << 24,
                                          field + ".context_length"));
  return ValidateIsNonNegative(dataset.max_tokens(), field + ".max_tokens");
}

absl::Status ResolveDatasets(ExperimentConfig& config) {
  if (config.dataset().empty())
    return absl::InvalidArgumentError("dataset: at least one is needed");
  std::set<std::string> names;
  for (int i = 0; i < config.dataset_size(); ++i) {
    const std::string field = absl::StrCat("dataset[", i, "]");
    Dataset& dataset = *config.mutable_dataset(i);
    KVMIX_RETURN_IF_ERROR(ResolveDataset(dataset, field));
    KVMIX_RETURN_IF_ERROR(
        ValidateUnique(names, dataset.name(), field + ".name"));
  }
  return absl::OkStatus();
}

absl::Status ResolveEvaluation(Evaluation& evaluation) {
  KVMIX_RETURN_IF_ERROR(
      ValidateEnum(Evaluation::Mode_IsValid(evaluation.mode()),
                   evaluation.mode(), "evaluation.mode"));
  if (evaluation.mode() != Evaluation::CHUNKED) {
    evaluation.clear_chunk_tokens();
  } else if (evaluation.chunk_tokens() == 0) {
    evaluation.set_chunk_tokens(128);
  }
  KVMIX_RETURN_IF_ERROR(ValidateIsNonNegative(evaluation.chunk_tokens(),
                                              "evaluation.chunk_tokens"));
  return ValidateIsNonNegative(evaluation.prefill_tokens(),
                               "evaluation.prefill_tokens");
}

absl::Status ResolveProfile(ProfileConfig& profile) {
  if (profile.num_prompts() == 0) profile.set_num_prompts(30);
  if (profile.prompt_tokens() == 0) profile.set_prompt_tokens(1024);
  if (profile.trial_chunk_tokens() == 0) profile.set_trial_chunk_tokens(32);
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(
      profile.trial_chunk_tokens(), 1, 1 << 20, "profile.trial_chunk_tokens"));
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(profile.num_prompts(), 1, 1 << 20,
                                          "profile.num_prompts"));
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(profile.prompt_tokens(), 2, 1 << 24,
                                          "profile.prompt_tokens"));
  if (!profile.has_dataset()) return absl::OkStatus();
  return ResolveDataset(*profile.mutable_dataset(), "profile.dataset");
}

absl::Status ResolveSpeed(Speed& speed) {
  if (speed.prompt_tokens() == 0) speed.set_prompt_tokens(512);
  if (speed.decode_tokens() == 0) speed.set_decode_tokens(64);
  if (speed.rounds() == 0) speed.set_rounds(3);
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(speed.prompt_tokens(), 1, 1 << 24,
                                          "speed.prompt_tokens"));
  KVMIX_RETURN_IF_ERROR(ValidateIsInRange(speed.decode_tokens(), 1, 1 << 24,
                                          "speed.decode_tokens"));
  return ValidateIsInRange(speed.rounds(), 1, 1000, "speed.rounds");
}

template <typename Interface>
absl::Status CheckComponent(const Component& component, const char* kind) {
  return Registry<Interface>::Get().Make(component, kind).status();
}

absl::Status ReadPlan(Method& method) {
  if (method.plan_file().empty()) return absl::OkStatus();
  if (method.has_plan()) {
    return absl::InvalidArgumentError(
        "has both plan and plan_file; give one of them");
  }
  KVMIX_ASSIGN_OR_RETURN(const std::string path,
                         ResolveInputPath(method.plan_file()));
  KVMIX_RETURN_IF_ERROR(ReadTextProto(path, *method.mutable_plan()));
  method.clear_plan_file();
  return absl::OkStatus();
}

absl::Status CheckCandidates(const Method& method) {
  for (int i = 0; i < method.candidate_size(); ++i) {
    const Candidate& candidate = method.candidate(i);
    const std::string field = absl::StrCat("candidate[", i, "]");
    KVMIX_RETURN_IF_ERROR(
        ValidateIsInRange(candidate.bits(), 1, 16, field + ".bits"));
    KVMIX_RETURN_IF_ERROR(
        ValidateEnum(Candidate::Sides_IsValid(candidate.sides()),
                     candidate.sides(), "candidate.sides"));
    if (!candidate.has_quantizer()) continue;
    KVMIX_RETURN_IF_ERROR(AddContext(
        CheckComponent<Quantizer>(candidate.quantizer(), "quantizer"), field));
  }
  return absl::OkStatus();
}

// Budget and candidates of a method whose parts look at them; of any other the
// common ones are no business.
absl::Status ResolveBudget(const ExperimentConfig& config, bool keeps_budget,
                           bool needs_formats, Method& method) {
  if (keeps_budget && !method.has_budget() && config.has_budget())
    *method.mutable_budget() = config.budget();
  if ((keeps_budget || needs_formats) && method.candidate().empty())
    *method.mutable_candidate() = config.candidate();
  return CheckCandidates(method);
}

// Fills what the method leaves open from its preset.
absl::Status ReadPreset(Method& method) {
  if (method.preset().empty()) return absl::OkStatus();
  KVMIX_RETURN_IF_ERROR(ValidateName(method.preset(), "preset"));
  KVMIX_ASSIGN_OR_RETURN(
      const std::string path,
      ResolveInputPath(
          absl::StrCat("experiments/presets/", method.preset(), ".textproto")));
  Method filled;
  KVMIX_RETURN_IF_ERROR(ReadTextProto(path, filled));
  if (filled.name().empty()) filled.set_name(method.preset());
  if (method.has_plan() || !method.plan_file().empty()) {
    filled.clear_bit_allocator();
    filled.clear_importance_estimator();
  }
  method.clear_preset();
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  method.GetReflection()->ListFields(method, &fields);
  for (const auto* field : fields)
    filled.GetReflection()->ClearField(&filled, field);
  filled.MergeFrom(method);
  method.Swap(&filled);
  return absl::OkStatus();
}

absl::Status ResolveMethod(const ExperimentConfig& config, Method& method) {
  KVMIX_RETURN_IF_ERROR(ReadPlan(method));
  KVMIX_RETURN_IF_ERROR(
      ValidateEnum(CachePlan::Granularity_IsValid(method.granularity()),
                   method.granularity(), "granularity"));
  KVMIX_RETURN_IF_ERROR(
      ValidateEnum(CachePlan::FullPrecision_IsValid(method.full_precision()),
                   method.full_precision(), "full_precision"));
  if (!method.has_quantizer()) *method.mutable_quantizer() = config.quantizer();
  if (!method.has_recency_policy())
    *method.mutable_recency_policy() = config.recency_policy();
  if (!method.has_eviction_policy())
    *method.mutable_eviction_policy() = config.eviction_policy();
  KVMIX_RETURN_IF_ERROR(
      CheckComponent<Quantizer>(method.quantizer(), "quantizer"));
  KVMIX_RETURN_IF_ERROR(
      CheckComponent<RecencyPolicy>(method.recency_policy(), "recency_policy"));
  KVMIX_RETURN_IF_ERROR(CheckComponent<EvictionPolicy>(method.eviction_policy(),
                                                       "eviction_policy"));
  if (method.has_plan()) {
    if (method.has_bit_allocator() || method.has_importance_estimator()) {
      return absl::InvalidArgumentError(
          "has a plan, so that its bit_allocator and importance_estimator "
          "would do nothing; remove them");
    }
    if (method.has_full_precision()) {
      return absl::InvalidArgumentError(
          "has a plan, which says itself what full precision is, so that its "
          "full_precision would do nothing; remove it");
    }
    if (method.granularity() == CachePlan::LAYER) return absl::OkStatus();
    return absl::InvalidArgumentError(
        "has a plan, which says itself what KV heads get, so that its "
        "granularity would do nothing; remove it");
  }
  if (!method.has_full_precision() && config.has_full_precision())
    method.set_full_precision(config.full_precision());
  if (!method.has_bit_allocator())
    *method.mutable_bit_allocator() = config.bit_allocator();
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<BitAllocator> allocator,
                         Registry<BitAllocator>::Get().Make(
                             method.bit_allocator(), "bit_allocator"));
  if (!allocator->NeedsProfile()) {
    method.clear_importance_estimator();
    return ResolveBudget(config, allocator->KeepsBudget(),
                         /*needs_formats=*/false, method);
  }
  if (!method.has_importance_estimator())
    *method.mutable_importance_estimator() = config.importance_estimator();
  KVMIX_ASSIGN_OR_RETURN(
      const std::unique_ptr<ImportanceEstimator> estimator,
      Registry<ImportanceEstimator>::Get().Make(method.importance_estimator(),
                                                "importance_estimator"));
  return ResolveBudget(config, allocator->KeepsBudget(),
                       estimator->NeedsFormats(), method);
}

absl::Status ResolveMethods(ExperimentConfig& config) {
  if (config.method().empty()) {
    return absl::InvalidArgumentError(
        "method: at least one is needed, the first being full precision");
  }
  KVMIX_RETURN_IF_ERROR(
      ValidateEnum(CachePlan::FullPrecision_IsValid(config.full_precision()),
                   config.full_precision(), "full_precision"));
  std::set<std::string> names;
  for (int i = 0; i < config.method_size(); ++i) {
    const std::string field = absl::StrCat("method[", i, "]");
    Method& method = *config.mutable_method(i);
    KVMIX_RETURN_IF_ERROR(AddContext(ReadPreset(method), field));
    if (method.name().empty())
      return absl::InvalidArgumentError(absl::StrCat(field, ".name is empty"));
    KVMIX_RETURN_IF_ERROR(
        ValidateUnique(names, method.name(), field + ".name"));
    KVMIX_RETURN_IF_ERROR(
        AddContext(ResolveMethod(config, method),
                   absl::StrCat(field, " (", method.name(), ")")));
  }
  return absl::OkStatus();
}

// Adds the repeated fields of `own` to those of `config` and replaces the
// others that are set. (Merging would mix the options of two components.)
void Overlay(const ExperimentConfig& own, ExperimentConfig& config) {
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  own.GetReflection()->ListFields(own, &fields);
  for (const auto* field : fields) {
    if (!field->is_repeated())
      config.GetReflection()->ClearField(&config, field);
  }
  config.MergeFrom(own);
}

constexpr int kMaxIncludes = 8;  // one inside the other

// The file and what it includes.
absl::StatusOr<ExperimentConfig> ReadConfig(const std::string& file,
                                            int depth) {
  ExperimentConfig own;
  KVMIX_RETURN_IF_ERROR(ReadTextProto(file, own));
  if (own.include().empty()) return own;
  if (depth == kMaxIncludes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": include: more than ", kMaxIncludes,
                     " configs include each other; is it a circle?"));
  }
  ExperimentConfig config;
  for (const std::string& include : own.include()) {
    const std::string path =
        (std::filesystem::path(file).parent_path() / include).string();
    KVMIX_ASSIGN_OR_RETURN(const ExperimentConfig included,
                           ReadConfig(path, depth + 1));
    Overlay(included, config);
  }
  own.clear_include();
  Overlay(own, config);
  return config;
}

}  // namespace

absl::StatusOr<ExperimentConfig> LoadUnresolvedConfig(
    const std::string& path, const std::vector<std::string>& overrides) {
  KVMIX_ASSIGN_OR_RETURN(const std::string file, ResolveInputPath(path));
  KVMIX_ASSIGN_OR_RETURN(ExperimentConfig config, ReadConfig(file, 0));
  for (const std::string& assignment : overrides)
    KVMIX_RETURN_IF_ERROR(ApplyOverride(assignment, config));
  return config;
}

absl::StatusOr<ExperimentConfig> LoadConfig(
    const std::string& path, const std::vector<std::string>& overrides) {
  KVMIX_ASSIGN_OR_RETURN(ExperimentConfig config,
                         LoadUnresolvedConfig(path, overrides));
  KVMIX_RETURN_IF_ERROR(AddContext(ResolveConfig(config), path));
  return config;
}

absl::Status ResolveConfig(ExperimentConfig& config) {
  if (config.has_sweep()) {
    return absl::InvalidArgumentError(
        "has a sweep, which is many experiments; run it with kvmix sweep, or "
        "remove the sweep");
  }
  KVMIX_RETURN_IF_ERROR(ValidateName(config.name(), "name"));
  KVMIX_RETURN_IF_ERROR(ValidateModel(config.model()));
  KVMIX_RETURN_IF_ERROR(
      ValidateIsInRange(config.threads(), 0, 1024, "threads"));
  if (config.output().empty()) config.set_output("out");
  KVMIX_RETURN_IF_ERROR(ResolveDatasets(config));
  KVMIX_RETURN_IF_ERROR(ResolveEvaluation(*config.mutable_evaluation()));
  KVMIX_RETURN_IF_ERROR(ResolveProfile(*config.mutable_profile()));
  KVMIX_RETURN_IF_ERROR(ResolveSpeed(*config.mutable_speed()));
  return ResolveMethods(config);
}

std::string ConfigText(const ExperimentConfig& config) {
  ExperimentConfig results = config;
  results.clear_threads();
  results.clear_output();
  results.clear_speed();
  results.mutable_profile()->clear_folder();
  // The methods hold what they took of the common components.
  results.clear_importance_estimator();
  results.clear_bit_allocator();
  results.clear_quantizer();
  results.clear_recency_policy();
  results.clear_eviction_policy();
  results.clear_budget();
  results.clear_candidate();
  return PrintTextProto(results);
}

}  // namespace kvmix
