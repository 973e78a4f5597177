#include "kvmix/allocation/choice_table.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "kvmix/allocation/gaussian_distortion.h"
#include "kvmix/allocation/layer_ranking.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

using Formats = google::protobuf::RepeatedPtrField<QuantFormat>;

absl::StatusOr<std::vector<Choice>> BytesOfSide(
    const Formats& formats, Side side, const AllocationContext& context) {
  std::vector<Choice> choices;
  for (const QuantFormat& format : formats) {
    KVMIX_ASSIGN_OR_RETURN(const int64_t bytes,
                           context.costs->Bytes(side, format));
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

absl::Status ValidateLoss(double loss, int layer, Side side) {
  if (std::isfinite(loss) && loss >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the profile's loss of layer ", layer, " ", SideName(side),
                   " is ", loss, " but must be finite and at least 0"));
}

absl::Status AddMeasuredLosses(const ImportanceProfile& profile,
                               const FormatChoices& choices,
                               ChoiceTable& table) {
  for (const Side side : {Side::kKey, Side::kValue}) {
    const bool key = side == Side::kKey;
    KVMIX_ASSIGN_OR_RETURN(
        const std::vector<int> found,
        FindFormats(key ? choices.key() : choices.value(),
                    key ? profile.formats().key() : profile.formats().value(),
                    side));
    for (int i = 0; i < profile.layer_size(); ++i) {
      const LayerImportance& layer = profile.layer(i);
      const auto& losses = key ? layer.key_loss() : layer.value_loss();
      std::vector<Choice>& item = table[2 * i + !key];
      for (size_t c = 0; c < item.size(); ++c) {
        if (found[c] < 0) continue;  // full precision
        if (found[c] >= losses.size()) {
          return absl::InvalidArgumentError(absl::StrCat(
              "the profile's layer ", i, " has ", losses.size(), " losses of ",
              SideName(side), " but ", found[c] + 1, " or more formats"));
        }
        item[c].loss = losses[found[c]];
        KVMIX_RETURN_IF_ERROR(ValidateLoss(item[c].loss, i, side));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status AddScoresTimesDistortion(const ImportanceProfile& profile,
                                      const AllocationContext& context,
                                      ChoiceTable& table) {
  for (const Side side : {Side::kKey, Side::kValue}) {
    const bool key = side == Side::kKey;
    std::vector<double> distortions;
    for (const QuantFormat& format :
         key ? context.choices->key() : context.choices->value()) {
      KVMIX_ASSIGN_OR_RETURN(
          const double distortion,
          GaussianDistortion(format, side, context.head_dim));
      distortions.push_back(distortion);
    }
    for (int i = 0; i < profile.layer_size(); ++i) {
      const double score =
          key ? profile.layer(i).key() : profile.layer(i).value();
      KVMIX_RETURN_IF_ERROR(ValidateLoss(score, i, side));
      std::vector<Choice>& item = table[2 * i + !key];
      for (size_t c = 0; c < item.size(); ++c)
        item[c].loss = score * distortions[c];
    }
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
  KVMIX_ASSIGN_OR_RETURN(
      const std::vector<Choice> key,
      BytesOfSide(context.choices->key(), Side::kKey, context));
  KVMIX_ASSIGN_OR_RETURN(
      const std::vector<Choice> value,
      BytesOfSide(context.choices->value(), Side::kValue, context));
  ChoiceTable table;
  for (int i = 0; i < context.num_layers; ++i) {
    table.push_back(key);
    table.push_back(value);
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
  KVMIX_RETURN_IF_ERROR(CheckNumLayers(profile, context.num_layers));
  KVMIX_ASSIGN_OR_RETURN(ChoiceTable table, BytesOfChoices(context));
  if (profile.has_formats()) {
    KVMIX_RETURN_IF_ERROR(AddMeasuredLosses(profile, *context.choices, table));
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
  KVMIX_RETURN_IF_ERROR(AddScoresTimesDistortion(profile, context, table));
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
                          const FormatChoices& choices) {
  CachePlan plan;
  for (size_t i = 0; i < chosen.size(); i += 2) {
    LayerPlan* layer = plan.add_layer();
    *layer->mutable_key() = choices.key(chosen[i]);
    *layer->mutable_value() = choices.value(chosen[i + 1]);
  }
  return plan;
}

}  // namespace kvmix
