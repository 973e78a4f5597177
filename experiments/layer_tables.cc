#include "experiments/layer_tables.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/budget.h"
#include "kvmix/cache_plan.h"

namespace kvmix {
namespace {

// Rank of each score, 1 for the highest; ties go to the earlier layer.
std::vector<int> Ranks(const ImportanceProfile& profile, bool key) {
  const auto score = [&](int layer) {
    return key ? profile.layer(layer).key() : profile.layer(layer).value();
  };
  std::vector<int> order(profile.layer_size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return score(a) > score(b); });
  std::vector<int> ranks(order.size());
  for (size_t i = 0; i < order.size(); ++i)
    ranks[order[i]] = static_cast<int>(i) + 1;
  return ranks;
}

}  // namespace

std::string FormatText(const QuantFormat& format) {
  if (format.bits() == 16) return "16 bits";
  std::string axis = QuantFormat::Axis_Name(format.axis());
  absl::AsciiStrToLower(&axis);
  std::string text = absl::StrCat(format.bits(), " bits, ",
                                  absl::StrReplaceAll(axis, {{"_", " "}}),
                                  ", group ", format.group_size());
  if (format.packing() == QuantFormat::DENSE) return text;
  std::string packing = QuantFormat::Packing_Name(format.packing());
  absl::AsciiStrToLower(&packing);
  return absl::StrCat(text, ", ", packing);
}

Table ProfileTable(const ImportanceProfile& profile) {
  Table table;
  table.header = {"layer",   "K score", "+-",    "K rank",
                  "V score", "+-",      "V rank"};
  const std::vector<int> key_ranks = Ranks(profile, true);
  const std::vector<int> value_ranks = Ranks(profile, false);
  for (int i = 0; i < profile.layer_size(); ++i) {
    const LayerImportance& layer = profile.layer(i);
    table.rows.push_back({absl::StrCat(i), absl::StrFormat("%.5g", layer.key()),
                          absl::StrFormat("%.2g", layer.key_stderr()),
                          absl::StrCat(key_ranks[i]),
                          absl::StrFormat("%.5g", layer.value()),
                          absl::StrFormat("%.2g", layer.value_stderr()),
                          absl::StrCat(value_ranks[i])});
  }
  return table;
}

Table PlanTable(const CachePlan& plan) {
  Table table;
  table.header = {"layer", "keys", "values"};
  for (int i = 0; i < plan.layer_size(); ++i) {
    const LayerPlan& layer = plan.layer(i);
    const int heads =
        static_cast<int>(std::max(FormatsOf(layer, Side::kKey).size(),
                                  FormatsOf(layer, Side::kValue).size()));
    for (int head = 0; head < heads; ++head) {
      table.rows.push_back(
          {LayerName(i, head, heads),
           FormatText(FormatOfHead(layer, Side::kKey, head)),
           FormatText(FormatOfHead(layer, Side::kValue, head))});
    }
  }
  return table;
}

Table AlternativesTable(const CachePlan& plan, const FormatChoices& formats,
                        const ChoiceTable& choices) {
  Table table;
  table.header = {"stored", "bits", "predicted loss"};
  for (int f = 0; f < std::max(formats.key_size(), formats.value_size()); ++f)
    table.header.push_back(absl::StrCat("format ", f + 1));
  const int parts = static_cast<int>(choices.size()) / 2 / plan.layer_size();
  for (size_t i = 0; i < choices.size(); ++i) {
    const bool key = i % 2 == 0;
    const int layer = static_cast<int>(i) / 2 / parts;
    const int head = static_cast<int>(i) / 2 % parts;
    const QuantFormat& own =
        FormatOfHead(plan.layer(layer), key ? Side::kKey : Side::kValue, head);
    const auto& offered = key ? formats.key() : formats.value();
    const auto same = std::find_if(
        offered.begin(), offered.end(), [&](const QuantFormat& format) {
          return format.SerializeAsString() == own.SerializeAsString();
        });
    std::vector<std::string> row = {
        absl::StrCat("layer ", LayerName(layer, head, parts),
                     key ? " keys" : " values"),
        absl::StrCat(own.bits())};
    const bool known = same != offered.end();
    const Choice* chosen =
        known ? &choices[i][same - offered.begin()] : nullptr;
    row.push_back(known ? absl::StrFormat("%.3g", chosen->loss) : "-");
    for (int f = 0; f < offered.size(); ++f) {
      const Choice& choice = choices[i][f];
      if (&choice == chosen) {
        row.push_back("chosen");
      } else if (known) {
        row.push_back(absl::StrFormat("%d: %+.2g, %+d B", offered[f].bits(),
                                      choice.loss - chosen->loss,
                                      choice.bytes - chosen->bytes));
      } else {
        row.push_back(absl::StrFormat("%d: %.2g, %d B", offered[f].bits(),
                                      choice.loss, choice.bytes));
      }
    }
    row.resize(table.header.size(), "");
    table.rows.push_back(std::move(row));
  }
  return table;
}

absl::StatusOr<std::string> PlanSummary(const CachePlan& plan, int head_dim) {
  KVMIX_ASSIGN_OR_RETURN(const PlanBits bits, BitsOfPlan(plan, head_dim));
  return absl::StrFormat(
      "K %.5g bits nominal, %.5g effective; V %.5g nominal, %.5g effective; "
      "packed part %.2fx smaller than fp16",
      bits.key.nominal, bits.key.effective, bits.value.nominal,
      bits.value.effective, bits.compression());
}

}  // namespace kvmix
