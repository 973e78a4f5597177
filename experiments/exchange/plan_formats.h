// Plans as other programs write them.
//
//   KVTuner  YAML, for each layer "3:", "  nbits_key: 4", "  nbits_value: 2"
//   JSON     {"layers": [{"layer": 3, "key": {"bits": 4, ...}, "value": ...}]}
//   types    two lists, one type a layer: "key: q4 q2 ...", "value: ..."; f16
//   for
//            full precision
// KVTuner's and the lists hold bits alone; group sizes and axes are in the
// JSON. KV heads with formats of their own are in the JSON alone, as lists.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvmix/allocation/manual.pb.h"
#include "kvmix/cache_plan.pb.h"
#include "nlohmann/json.hpp"

namespace kvmix {

// Errors: KV heads with formats of their own.
absl::StatusOr<std::string> KvTunerYaml(const CachePlan& plan);
absl::StatusOr<std::string> TypeLists(const CachePlan& plan);
nlohmann::ordered_json PlanJson(const CachePlan& plan);

// The bits of a KVTuner YAML as options of the allocator "manual". Errors, with
// line numbers: what is not of the form above, bits that are not 1 to 8 or 16,
// a layer twice, one missing before the last.
absl::StatusOr<ManualOptions> ParseKvTunerYaml(absl::string_view yaml);

}  // namespace kvmix
