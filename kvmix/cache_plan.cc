#include "kvmix/cache_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace kvmix {
namespace {

using Formats = google::protobuf::RepeatedPtrField<QuantFormat>;

const Formats& HeadsOf(const LayerPlan& layer, Side side) {
  return side == Side::kKey ? layer.key_head() : layer.value_head();
}

const QuantFormat& SharedOf(const LayerPlan& layer, Side side) {
  return side == Side::kKey ? layer.key() : layer.value();
}

absl::Status CheckSide(const LayerPlan& layer, Side side, int num_kv_heads) {
  const bool key = side == Side::kKey;
  const char* field = key ? "key" : "value";
  const int heads = HeadsOf(layer, side).size();
  if (heads == 0) return absl::OkStatus();
  if (key ? layer.has_key() : layer.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("has both ", field, " and ", field,
                     "_head; one format for all KV heads or one for each, "
                     "remove either"));
  }
  if (heads == num_kv_heads) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      field, "_head has ", heads, " formats but the model has ", num_kv_heads,
      " KV heads; give one for each, or ", field, " for all"));
}

}  // namespace

bool HasHeadFormats(const LayerPlan& layer, Side side) {
  return !HeadsOf(layer, side).empty();
}

std::vector<const QuantFormat*> FormatsOf(const LayerPlan& layer, Side side) {
  if (!HasHeadFormats(layer, side)) return {&SharedOf(layer, side)};
  return {HeadsOf(layer, side).pointer_begin(),
          HeadsOf(layer, side).pointer_end()};
}

std::vector<QuantFormat*> MutableFormatsOf(LayerPlan& layer, Side side) {
  const bool key = side == Side::kKey;
  if (!HasHeadFormats(layer, side))
    return {key ? layer.mutable_key() : layer.mutable_value()};
  Formats& heads = *(key ? layer.mutable_key_head()  //
                         : layer.mutable_value_head());
  return {heads.pointer_begin(), heads.pointer_end()};
}

const QuantFormat& FormatOfHead(const LayerPlan& layer, Side side, int head) {
  return HasHeadFormats(layer, side) ? HeadsOf(layer, side)[head]
                                     : SharedOf(layer, side);
}

void SetFormats(const std::vector<QuantFormat>& formats, Side side,
                LayerPlan& layer) {
  const bool key = side == Side::kKey;
  Formats& heads = *(key ? layer.mutable_key_head()  //
                         : layer.mutable_value_head());
  heads.Clear();
  const std::string first = formats[0].SerializeAsString();
  const bool alike = std::all_of(formats.begin(), formats.end(),
                                 [&](const QuantFormat& format) {
                                   return format.SerializeAsString() == first;
                                 });
  if (alike) {
    *(key ? layer.mutable_key() : layer.mutable_value()) = formats[0];
    return;
  }
  key ? layer.clear_key() : layer.clear_value();
  heads.Assign(formats.begin(), formats.end());
}

bool IsFullPrecision(const CachePlan& plan) {
  for (const LayerPlan& layer : plan.layer()) {
    for (const Side side : {Side::kKey, Side::kValue}) {
      for (const QuantFormat* format : FormatsOf(layer, side))
        if (format->bits() != 16) return false;
    }
  }
  return true;
}

std::string LayerName(int layer, int head, int num_formats) {
  return num_formats > 1 ? absl::StrCat(layer, " head ", head)
                         : absl::StrCat(layer);
}

absl::Status CheckHeads(const CachePlan& plan, int num_kv_heads) {
  for (int i = 0; i < plan.layer_size(); ++i) {
    for (const Side side : {Side::kKey, Side::kValue}) {
      const absl::Status status = CheckSide(plan.layer(i), side, num_kv_heads);
      if (status.ok()) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("the plan's layer[", i, "] ", status.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckHeadsAreAlike(const CachePlan& plan, absl::StatusCode code,
                                absl::string_view why) {
  for (int i = 0; i < plan.layer_size(); ++i) {
    for (const Side side : {Side::kKey, Side::kValue}) {
      if (!HasHeadFormats(plan.layer(i), side)) continue;
      return absl::Status(code, absl::StrCat("layer ", i, " ", SideName(side),
                                             ": KV heads have formats of their "
                                             "own, ",
                                             why));
    }
  }
  return absl::OkStatus();
}

}  // namespace kvmix
