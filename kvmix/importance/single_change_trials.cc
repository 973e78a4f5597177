#include "kvmix/importance/single_change_trials.h"

#include "absl/strings/str_cat.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/cache_plan.h"

namespace kvmix {
namespace {

QuantFormat FullPrecision() {
  QuantFormat format;
  format.set_bits(16);
  return format;
}

const google::protobuf::RepeatedPtrField<QuantFormat>& FormatsOf(
    const FormatChoices& formats, Side side) {
  return side == Side::kKey ? formats.key() : formats.value();
}

}  // namespace

SingleChangeTrials::SingleChangeTrials(const ProfileContext& context, Base base,
                                       Cost cost)
    : formats_(*context.formats),
      heads_apart_(context.granularity == CachePlan::HEAD ? context.num_kv_heads
                                                          : 0),
      cost_(cost) {
  for (int i = 0; i < context.num_layers; ++i) {
    LayerPlan* layer = base_.add_layer();
    const bool full = base == Base::kFullPrecision;
    *layer->mutable_key() = full ? FullPrecision() : formats_.key(0);
    *layer->mutable_value() = full ? FullPrecision() : formats_.value(0);
  }
  for (int i = 0; i < context.num_layers; ++i) {
    for (const Side side : {Side::kKey, Side::kValue}) {
      for (int head = kAllHeads; head < heads_apart_; ++head)
        AddChange(i, side, head);
    }
  }
}

void SingleChangeTrials::AddChange(int layer, Side side, int head) {
  Change& change = changes_[{layer, side, head}];
  change.reference = AddPlan(Changed(layer, side, head, FullPrecision()));
  for (const QuantFormat& format : FormatsOf(formats_, side))
    change.formats.push_back(AddPlan(Changed(layer, side, head, format)));
}

CachePlan SingleChangeTrials::Changed(int layer, Side side, int head,
                                      const QuantFormat& format) const {
  CachePlan plan = base_;
  LayerPlan& changed = *plan.mutable_layer(layer);
  if (head == kAllHeads) {
    SetFormats({format}, side, changed);
    return plan;
  }
  std::vector<QuantFormat> heads(heads_apart_, FormatOfHead(changed, side, 0));
  heads[head] = format;
  SetFormats(heads, side, changed);
  return plan;
}

int SingleChangeTrials::AddPlan(const CachePlan& plan) {
  if (IsFullPrecision(plan)) return kFullPrecisionPlan;
  const auto [at, is_new] =
      index_.emplace(plan.SerializeAsString(), static_cast<int>(plans_.size()));
  if (is_new) plans_.push_back(plan);
  return at->second;
}

absl::Status SingleChangeTrials::Observe(const TrialResult& result) {
  Prompt& prompt = prompts_[result.prompt];
  prompt.num_tokens = result.num_tokens;
  prompt.costs[kFullPrecisionPlan] = 0;
  prompt.costs[result.plan] = result.*cost_;
  return absl::OkStatus();
}

std::vector<double> SingleChangeTrials::CostsOf(int layer, Side side, int head,
                                                const Prompt& prompt) const {
  const Change& change = changes_.at({layer, side, head});
  std::vector<double> costs;
  for (int plan : change.formats) {
    costs.push_back(prompt.costs.at(plan) - prompt.costs.at(change.reference));
  }
  return costs;
}

std::vector<double> SingleChangeTrials::HeadCostsOf(
    int layer, Side side, const Prompt& prompt) const {
  std::vector<double> costs;
  for (int head = 0; head < heads_apart_; ++head) {
    for (double cost : CostsOf(layer, side, head, prompt))
      costs.push_back(cost);
  }
  return costs;
}

absl::StatusOr<ImportanceProfile> SingleChangeTrials::Profile(
    const std::string& estimator) const {
  ScoreAccumulator scores(base_.layer_size(), ScoreAccumulator::Sign::kAny);
  for (const auto& [index, prompt] : prompts_) {
    if (prompt.costs.size() != plans_.size() + 1) {
      return absl::FailedPreconditionError(absl::StrCat(
          "prompt ", index, " was seen under ", prompt.costs.size() - 1,
          " trial plans of ", plans_.size(), "; it must be under all"));
    }
    for (int i = 0; i < base_.layer_size(); ++i) {
      LayerScores layer;
      layer.key_losses = CostsOf(i, Side::kKey, kAllHeads, prompt);
      layer.value_losses = CostsOf(i, Side::kValue, kAllHeads, prompt);
      layer.key_head_losses = HeadCostsOf(i, Side::kKey, prompt);
      layer.value_head_losses = HeadCostsOf(i, Side::kValue, prompt);
      layer.key = layer.key_losses[0];
      layer.value = layer.value_losses[0];
      for (int head = 0; head < heads_apart_; ++head) {
        layer.key_heads.push_back(
            layer.key_head_losses[head * formats_.key_size()]);
        layer.value_heads.push_back(
            layer.value_head_losses[head * formats_.value_size()]);
      }
      KVMIX_RETURN_IF_ERROR(scores.Add(index, i, prompt.num_tokens, layer));
    }
  }
  return scores.Profile(estimator, ImportanceProfile::NATS, &formats_);
}

}  // namespace kvmix
