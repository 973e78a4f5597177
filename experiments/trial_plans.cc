#include "experiments/trial_plans.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "experiments/evaluate.h"
#include "experiments/sweep/file_lock.h"
#include "experiments/text_proto.h"
#include "kvmix/base/fingerprint.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/importance/query_energy.h"

namespace kvmix {
namespace {

// Plans that pass the model together.
constexpr size_t kBatch = 16;

double Mean(const google::protobuf::RepeatedField<double>& x) {
  return std::accumulate(x.begin(), x.end(), 0.0) /
         std::max<double>(1, x.size());
}

std::string NameOf(const CachePlan& plan) {
  return Fingerprint(plan.SerializeAsString());
}

}  // namespace

int64_t NumTrialPasses(size_t num_plans) {
  return static_cast<int64_t>((num_plans + kBatch - 1) / kBatch);
}

absl::StatusOr<TrialResults> RunTrialPlans(const WhereToRun& where,
                                           const std::vector<int32_t>& tokens,
                                           absl::Span<const CachePlan> plans,
                                           const RunnableMethod& method,
                                           const TrialOptions& options) {
  Window window;
  window.tokens = tokens;
  Evaluation evaluation;
  evaluation.set_mode(Evaluation::CHUNKED);
  evaluation.set_chunk_tokens(options.chunk_tokens);
  ThreadPool threads(where.cpu->threads().num_threads());  // of the scores
  KVMIX_ASSIGN_OR_RETURN(
      const RunnableMethod full,
      FullPrecision(where.cpu->cache_shape(), method.plan.full_precision()));
  TrialResults results;
  for (size_t first = 0; first < plans.size(); first += kBatch) {
    std::vector<RunnableMethod> methods = {full};
    const size_t end = std::min(plans.size(), first + kBatch);
    for (size_t i = first; i < end; ++i) {
      methods.push_back(method);
      methods.back().name = absl::StrCat("trial plan ", i);
      methods.back().plan = plans[i];
      methods.back().plan.set_full_precision(method.plan.full_precision());
    }
    KVMIX_ASSIGN_OR_RETURN(const WindowRecord record,
                           EvaluateWindow(where, methods, window, evaluation,
                                          threads, options.stop));
    results.full_loss = Mean(record.method(0).nll());
    for (size_t i = first; i < end; ++i) {
      const WindowMethod& trial =
          record.method(static_cast<int>(i - first) + 1);
      results.losses.push_back(
          {.loss_difference = Mean(trial.nll()) - results.full_loss,
           .kl_divergence = Mean(trial.kl())});
    }
    if (options.pass_done) options.pass_done();
  }
  return results;
}

std::string ModelPlanEvaluator::Path() const {
  return absl::StrCat(setting_.folder, "/", known_.key(), ".textproto");
}

absl::Status ModelPlanEvaluator::Load() const {
  if (prompts_.has_value()) return absl::OkStatus();
  KVMIX_ASSIGN_OR_RETURN(prompts_, setting_.prompts());
  known_.set_key(Fingerprint(
      absl::StrCat(setting_.model, "\n", FingerprintOf(*prompts_), "\n",
                   policies_, "\n", setting_.chunk_tokens,
                   setting_.where.device != nullptr ? "\nCUDA" : "")));
  StoredPlanLosses on_disk;
  if (!setting_.folder.empty() && ReadTextProto(Path(), on_disk).ok() &&
      on_disk.key() == known_.key())
    known_ = std::move(on_disk);
  return absl::OkStatus();
}

// Adds to what other processes have kept meanwhile.
absl::Status ModelPlanEvaluator::Keep() const {
  if (setting_.folder.empty()) return absl::OkStatus();
  KVMIX_ASSIGN_OR_RETURN(
      const FileLock lock,
      FileLock::Wait(absl::StrCat(setting_.folder, ".locks/", known_.key())));
  StoredPlanLosses all;
  if (ReadTextProto(Path(), all).ok() && all.key() == known_.key())
    known_.mutable_plan()->insert(all.plan().begin(), all.plan().end());
  return WriteTextProto(known_, Path());
}

absl::Status ModelPlanEvaluator::Measure(
    const std::vector<CachePlan>& plans) const {
  std::vector<StoredPlanLosses::Losses> sums(plans.size());
  const auto count = static_cast<double>(prompts_->size());
  for (size_t p = 0; p < prompts_->size(); ++p) {
    const absl::StatusOr<TrialResults> trials = RunTrialPlans(
        setting_.where, (*prompts_)[p], plans, method_,
        {.chunk_tokens = setting_.chunk_tokens, .stop = setting_.stop});
    if (!trials.ok())
      return AddContext(trials.status(), absl::StrCat("prompt ", p));
    for (size_t i = 0; i < plans.size(); ++i) {
      const PlanLoss& loss = trials->losses[i];
      sums[i].set_loss_difference(sums[i].loss_difference() +
                                  loss.loss_difference / count);
      sums[i].set_kl_divergence(sums[i].kl_divergence() +
                                loss.kl_divergence / count);
    }
  }
  for (size_t i = 0; i < plans.size(); ++i)
    (*known_.mutable_plan())[NameOf(plans[i])] = sums[i];
  return Keep();
}

absl::StatusOr<std::vector<PlanLoss>> ModelPlanEvaluator::Evaluate(
    absl::Span<const CachePlan> plans) const {
  KVMIX_RETURN_IF_ERROR(Load());
  std::vector<std::string> names;
  std::map<std::string, CachePlan> fresh;
  for (CachePlan plan : plans) {
    KVMIX_RETURN_IF_ERROR(CalibratePlan(profile_, plan));
    names.push_back(NameOf(plan));
    if (known_.plan().count(names.back()) == 0)
      fresh.emplace(names.back(), plan);
  }
  std::vector<CachePlan> to_run;
  for (const auto& [name, plan] : fresh) to_run.push_back(plan);
  if (!to_run.empty()) KVMIX_RETURN_IF_ERROR(Measure(to_run));
  std::vector<PlanLoss> losses;
  for (const std::string& name : names) {
    const StoredPlanLosses::Losses& known = known_.plan().at(name);
    losses.push_back({.loss_difference = known.loss_difference(),
                      .kl_divergence = known.kl_divergence()});
  }
  return losses;
}

}  // namespace kvmix
