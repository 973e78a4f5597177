#include "experiments/exchange/plan_formats.h"

#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kvmix/base/status_macros.h"
#include "kvmix/cache_plan.h"

namespace kvmix {
namespace {

struct LayerBits {
  int key = 0, value = 0;  // 0: not given
};

nlohmann::ordered_json FormatJson(const QuantFormat& format) {
  nlohmann::ordered_json json = {{"bits", format.bits()}};
  if (format.bits() >= 16) return json;
  json["axis"] = QuantFormat::Axis_Name(format.axis());
  json["group_size"] = format.group_size();
  json["packing"] = QuantFormat::Packing_Name(format.packing());
  return json;
}

nlohmann::ordered_json SideJson(const LayerPlan& layer, Side side) {
  if (!HasHeadFormats(layer, side))
    return FormatJson(FormatOfHead(layer, side, 0));
  auto heads = nlohmann::ordered_json::array();
  for (const QuantFormat* format : FormatsOf(layer, side))
    heads.push_back(FormatJson(*format));
  return heads;
}

// Of a plan that tells KV heads apart.
absl::Status CheckHasWords(const CachePlan& plan, absl::string_view format) {
  return CheckHeadsAreAlike(
      plan, absl::StatusCode::kInvalidArgument,
      absl::StrCat("for which ", format,
                   " has no words; write --to=json, or make a plan with "
                   "granularity: LAYER"));
}

std::string TypeOf(const QuantFormat& format) {
  return format.bits() >= 16 ? "f16" : absl::StrCat("q", format.bits());
}

absl::Status Complain(int line, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("line ", line, ": ", what));
}

// One line; `layer` is the one that the lines before it were about.
absl::Status ReadLine(absl::string_view line, int number, int& layer,
                      std::map<int, LayerBits>& layers) {
  line = line.substr(0, line.find('#'));
  const bool indented = absl::StartsWith(line, " ");
  line = absl::StripAsciiWhitespace(line);
  if (line.empty()) return absl::OkStatus();
  const size_t colon = line.find(':');
  if (colon == absl::string_view::npos)
    return Complain(number, absl::StrCat("\"", line, "\" has no colon"));
  const absl::string_view name = line.substr(0, colon);
  const absl::string_view value =
      absl::StripAsciiWhitespace(line.substr(colon + 1));
  if (!indented) {
    if (!absl::SimpleAtoi(name, &layer) || layer < 0 || !value.empty())
      return Complain(number, absl::StrCat("\"", line, "\" is no layer"));
    if (!layers.emplace(layer, LayerBits()).second)
      return Complain(number, absl::StrCat("layer ", layer, " stands twice"));
    return absl::OkStatus();
  }
  if (layer < 0) return Complain(number, "stands before the first layer");
  if (name != "nbits_key" && name != "nbits_value")
    return Complain(number, absl::StrCat("\"", name,
                                         "\" is neither nbits_key nor "
                                         "nbits_value"));
  int bits = 0;
  if (!absl::SimpleAtoi(value, &bits) ||
      !((bits >= 1 && bits <= 8) || bits == 16))
    return Complain(number,
                    absl::StrCat("\"", value, "\" is not 1 to 8 or 16 bits"));
  (name == "nbits_key" ? layers[layer].key : layers[layer].value) = bits;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> KvTunerYaml(const CachePlan& plan) {
  KVMIX_RETURN_IF_ERROR(CheckHasWords(plan, "KVTuner's YAML"));
  std::string text;
  for (int i = 0; i < plan.layer_size(); ++i) {
    absl::StrAppend(&text, i, ":\n  nbits_key: ", plan.layer(i).key().bits(),
                    "\n  nbits_value: ", plan.layer(i).value().bits(), "\n");
  }
  return text;
}

nlohmann::ordered_json PlanJson(const CachePlan& plan) {
  auto layers = nlohmann::ordered_json::array();
  for (int i = 0; i < plan.layer_size(); ++i) {
    layers.push_back({{"layer", i},
                      {"key", SideJson(plan.layer(i), Side::kKey)},
                      {"value", SideJson(plan.layer(i), Side::kValue)}});
  }
  return {{"layers", std::move(layers)}};
}

absl::StatusOr<std::string> TypeLists(const CachePlan& plan) {
  KVMIX_RETURN_IF_ERROR(CheckHasWords(plan, "a list of types"));
  std::string key = "key:", value = "value:";
  for (const LayerPlan& layer : plan.layer()) {
    absl::StrAppend(&key, " ", TypeOf(layer.key()));
    absl::StrAppend(&value, " ", TypeOf(layer.value()));
  }
  return absl::StrCat(key, "\n", value, "\n");
}

absl::StatusOr<ManualOptions> ParseKvTunerYaml(absl::string_view yaml) {
  std::map<int, LayerBits> layers;
  int layer = -1, number = 0;
  for (absl::string_view line : absl::StrSplit(yaml, '\n'))
    KVMIX_RETURN_IF_ERROR(ReadLine(line, ++number, layer, layers));
  if (layers.empty()) return absl::InvalidArgumentError("names no layer");
  ManualOptions options;
  int expected = 0;
  for (const auto& [index, bits] : layers) {
    if (index != expected++) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", expected - 1, " is missing"));
    }
    if (bits.key == 0 || bits.value == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", index, " has no ",
                       bits.key == 0 ? "nbits_key" : "nbits_value"));
    }
    ManualOptions::Entry& entry = *options.add_entry();
    entry.set_layers(absl::StrCat(index));
    entry.mutable_bits()->set_key_bits(bits.key);
    entry.mutable_bits()->set_value_bits(bits.value);
  }
  return options;
}

}  // namespace kvmix
