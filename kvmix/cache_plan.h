// The formats of a LayerPlan, whether the layer's KV heads share one or each
// has its own.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kvmix/cache_plan.pb.h"
#include "quant/quantizer.h"

namespace kvmix {

// True: each KV head has a format for its keys (values).
bool HasHeadFormats(const LayerPlan& layer, Side side);

// Of the keys (values): one that all KV heads share, or one for each.
std::vector<const QuantFormat*> FormatsOf(const LayerPlan& layer, Side side);
std::vector<QuantFormat*> MutableFormatsOf(LayerPlan& layer, Side side);

// Precondition: CheckHeads; head is one of the model's KV heads.
const QuantFormat& FormatOfHead(const LayerPlan& layer, Side side, int head);

bool IsFullPrecision(const CachePlan& plan);

// formats: one for each KV head, or one for all. Heads that are all alike are
// written as one.
void SetFormats(const std::vector<QuantFormat>& formats, Side side,
                LayerPlan& layer);

// "3", or "3 head 1" of a layer with a format for each of several heads.
std::string LayerName(int layer, int head, int num_formats);

// Errors: formats of single heads that are not one for each KV head, or that
// stand beside one for all.
absl::Status CheckHeads(const CachePlan& plan, int num_kv_heads);

// For what has no room for formats of single KV heads: an error, of this code,
// if the plan has any. `why`: ends its sentence, and says the way out.
absl::Status CheckHeadsAreAlike(const CachePlan& plan, absl::StatusCode code,
                                absl::string_view why);

}  // namespace kvmix
