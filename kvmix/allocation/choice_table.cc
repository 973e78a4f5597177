#include "kvmix/allocation/choice_table.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "kvmix/allocation/gaussian_distortion.h"
#include "kvmix/allocation/part_ranking.h"
#include "kvmix/allocation/plan_from_bits.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

using Formats = google::protobuf::RepeatedPtrField<QuantFormat>;

absl::StatusOr<std::vector<Choice>> BytesOfItem(
    int part, Side side, const AllocationContext& context) {
  std::vector<Choice> choices;
  for (const QuantFormat& format :
       side == Side::kKey ? context.choices->key() : context.choices->value()) {
    KVMIX_ASSIGN_OR_RETURN(const int64_t bytes,
                           context.granularity == CachePlan::HEAD
                               ? context.costs->HeadBytes(
                                     side, part % context.num_kv_heads, format)
                               : context.costs->LayerBytes(side, format));
    choices.push_back({.bytes = bytes});
  }
  return choices;
}

// Index of the format in a profile's table, -1 if it is not there.
int FindFormat(const QuantFormat& format, const Formats& formats) {
  const std::string text = format.SerializeAsString();
  for (int i = 0; i < formats.size(); ++i) {
    if (formats[i].SerializeAsString() == text) return i;
  }
  return -1;
}

absl::Status MissingFormat(Side side, int bits) {
  return absl::InvalidArgumentError(absl::StrCat(
      "the profile has no losses of a format of ", bits, " bits for ",
      SideName(side),
      ", which this method offers; make the profile with the same formats"));
}

// For one side: the index of each offered format in the profile's table.
absl::StatusOr<std::vector<int>> FindFormats(const Formats& offered,
                                             const Formats& known, Side side) {
  std::vector<int> found;
  for (const QuantFormat& format : offered) {
    found.push_back(FindFormat(format, known));
    if (found.back() < 0 && format.bits() != 16)
      return MissingFormat(side, format.bits());
  }
  return found;
}

absl::Status ValidateLoss(double loss, int part, Side side,
                          const AllocationContext& context) {
  if (std::isfinite(loss) && loss >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "the profile's loss of layer ", part / context.parts_of_layer(), " ",
      SideName(side), " is ", loss, " but must be finite and at least 0"));
}

// The profile's losses of a layer's keys (values), part by part: [parts of the
// layer, known formats].
absl::StatusOr<absl::Span<const double>> LossesOfLayer(
    const ImportanceProfile& profile, int layer, Side side, int known,
    const AllocationContext& context) {
  const LayerImportance& of = profile.layer(layer);
  const bool key = side == Side::kKey;
  if (context.granularity == CachePlan::LAYER) {
    const auto& losses = key ? of.key_loss() : of.value_loss();
    if (losses.size() >= known) return absl::MakeConstSpan(losses);
    return absl::InvalidArgumentError(absl::StrCat(
        "the profile's layer ", layer, " has ", losses.size(), " losses of ",
        SideName(side), " but ", known, " formats"));
  }
  const auto& losses = key ? of.key_head_loss() : of.value_head_loss();
  if (losses.size() == known * context.num_kv_heads)
    return absl::MakeConstSpan(losses);
  return absl::InvalidArgumentError(absl::StrCat(
      "granularity is HEAD but the profile's layer ", layer, " has ",
      losses.size(), " losses of ", SideName(side), " for ", known,
      " formats of each of ", context.num_kv_heads,
      " KV heads; make the profile with granularity: HEAD, or allocate with "
      "LAYER"));
}

absl::Status AddMeasuredLosses(const ImportanceProfile& profile, Side side,
                               const AllocationContext& context,
                               ChoiceTable& table) {
  const bool key = side == Side::kKey;
  const Formats& known =
      key ? profile.formats().key() : profile.formats().value();
  KVMIX_ASSIGN_OR_RETURN(
      const std::vector<int> found,
      FindFormats(key ? context.choices->key() : context.choices->value(),
                  known, side));
  const int parts = context.parts_of_layer();
  for (int p = 0; p < context.num_parts(); ++p) {
    KVMIX_ASSIGN_OR_RETURN(
        const absl::Span<const double> losses,
        LossesOfLayer(profile, p / parts, side, known.size(), context));
    std::vector<Choice>& item = table[2 * p + !key];
    for (size_t c = 0; c < item.size(); ++c) {
      if (found[c] < 0) continue;  // full precision
      item[c].loss = losses[p % parts * known.size() + found[c]];
      KVMIX_RETURN_IF_ERROR(ValidateLoss(item[c].loss, p, side, context));
    }
  }
  return absl::OkStatus();
}

absl::Status AddScoresTimesDistortion(const ImportanceProfile& profile,
                                      Side side,
                                      const AllocationContext& context,
                                      ChoiceTable& table) {
  const bool key = side == Side::kKey;
  std::vector<double> distortions;
  for (const QuantFormat& format :
       key ? context.choices->key() : context.choices->value()) {
    KVMIX_ASSIGN_OR_RETURN(const double distortion,
                           GaussianDistortion(format, side, context.head_dim));
    distortions.push_back(distortion);
  }
  KVMIX_ASSIGN_OR_RETURN(const std::vector<double> scores,
                         ScoresOfParts(profile, side, context));
  for (int p = 0; p < context.num_parts(); ++p) {
    KVMIX_RETURN_IF_ERROR(ValidateLoss(scores[p], p, side, context));
    std::vector<Choice>& item = table[2 * p + !key];
    for (size_t c = 0; c < item.size(); ++c)
      item[c].loss = scores[p] * distortions[c];
  }
  return absl::OkStatus();
}

struct Step {
  int item = -1;  // -1: there is none
  int choice = 0;
};

Step BestStep(const ChoiceTable& table, const std::vector<int>& chosen,
              int64_t room) {
  Step best;
  double best_rate = 0;
  for (size_t i = 0; i < table.size(); ++i) {
    const Choice& now = table[i][chosen[i]];
    for (size_t c = 0; c < table[i].size(); ++c) {
      const int64_t bytes = table[i][c].bytes - now.bytes;
      if (bytes <= 0 || bytes > room) continue;
      const double rate =
          (now.loss - table[i][c].loss) / static_cast<double>(bytes);
      if (rate > best_rate) {
        best = {.item = static_cast<int>(i), .choice = static_cast<int>(c)};
        best_rate = rate;
      }
    }
  }
  return best;
}

}  // namespace

absl::StatusOr<ChoiceTable> BytesOfChoices(const AllocationContext& context) {
  if (context.costs == nullptr) {
    return absl::InvalidArgumentError(
        "this allocator keeps to a budget and needs one; set the method's "
        "budget, as budget { effective_bits: 3 }");
  }
  ChoiceTable table;
  for (int p = 0; p < context.num_parts(); ++p) {
    for (const Side side : {Side::kKey, Side::kValue}) {
      KVMIX_ASSIGN_OR_RETURN(table.emplace_back(),
                             BytesOfItem(p, side, context));
    }
  }
  const int64_t least = BytesOf(table, CheapestChoices(table));
  if (least > context.budget_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the budget is ", context.budget_bytes,
        " bytes but the cheapest plan takes ", least,
        "; raise the budget, offer cheaper formats, or choose a recency policy "
        "that keeps fewer tokens"));
  }
  return table;
}

absl::StatusOr<ChoiceTable> LossesOfChoices(const ImportanceProfile& profile,
                                            const AllocationContext& context,
                                            bool trust_scores) {
  KVMIX_RETURN_IF_ERROR(CheckNumLayers(profile, context));
  KVMIX_ASSIGN_OR_RETURN(ChoiceTable table, BytesOfChoices(context));
  if (profile.has_formats()) {
    for (const Side side : {Side::kKey, Side::kValue}) {
      KVMIX_RETURN_IF_ERROR(AddMeasuredLosses(profile, side, context, table));
    }
    return table;
  }
  if (profile.unit() == ImportanceProfile::RANK_ONLY && !trust_scores) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the scores of \"", profile.estimator(),
        "\" only rank layers and are no losses to add up; use an estimator "
        "that measures formats, as \"isolated_kl\", or set options { "
        "trust_scores: true }, which takes a score times the distortion of a "
        "format for its loss"));
  }
  for (const Side side : {Side::kKey, Side::kValue}) {
    KVMIX_RETURN_IF_ERROR(
        AddScoresTimesDistortion(profile, side, context, table));
  }
  return table;
}

int64_t BytesOf(const ChoiceTable& table, const std::vector<int>& chosen) {
  int64_t sum = 0;
  for (size_t i = 0; i < table.size(); ++i) sum += table[i][chosen[i]].bytes;
  return sum;
}

double LossOf(const ChoiceTable& table, const std::vector<int>& chosen) {
  double sum = 0;
  for (size_t i = 0; i < table.size(); ++i) sum += table[i][chosen[i]].loss;
  return sum;
}

std::vector<int> CheapestChoices(const ChoiceTable& table) {
  std::vector<int> chosen;
  for (const std::vector<Choice>& item : table) {
    int best = 0;
    for (size_t c = 1; c < item.size(); ++c) {
      if (item[c].bytes < item[best].bytes ||
          (item[c].bytes == item[best].bytes && item[c].loss < item[best].loss))
        best = static_cast<int>(c);
    }
    chosen.push_back(best);
  }
  return chosen;
}

void TakeBestSteps(const ChoiceTable& table, int64_t budget_bytes,
                   std::vector<int>& chosen) {
  int64_t room = budget_bytes - BytesOf(table, chosen);
  for (Step step = BestStep(table, chosen, room); step.item >= 0;
       step = BestStep(table, chosen, room)) {
    room -= table[step.item][step.choice].bytes -
            table[step.item][chosen[step.item]].bytes;
    chosen[step.item] = step.choice;
  }
}

CachePlan PlanFromChoices(const std::vector<int>& chosen,
                          const AllocationContext& context) {
  std::vector<QuantFormat> key, value;
  for (size_t i = 0; i < chosen.size(); i += 2) {
    key.push_back(context.choices->key(chosen[i]));
    value.push_back(context.choices->value(chosen[i + 1]));
  }
  return PlanFromFormats(key, value, context);
}

}  // namespace kvmix
