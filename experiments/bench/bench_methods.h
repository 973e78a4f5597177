// Short names for ways to store a cache, for benchmarks: "4bit_g32", "kvmix".
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attention/kv_cache.h"
#include "experiments/evaluate.h"

namespace kvmix {

// The names, one a line with what it means.
std::string BenchMethodHelp();

// What `name` means for a model of that shape. Where a plan treats layers
// differently, chance says which: speed and size do not depend on it. A path is
// a textproto of CachePlan, run with only tokens of an incomplete group in full
// precision. Errors: a name that is none, with the list of those that are; a
// format that the shape does not allow; a file that cannot be read.
absl::StatusOr<RunnableMethod> MakeBenchMethod(absl::string_view name,
                                               const CacheShape& shape);

}  // namespace kvmix
