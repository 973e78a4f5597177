// What kvmix bench prints: Markdown for people, CSV and JSON for programs.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "experiments/bench/bench.h"

namespace kvmix {

enum class BenchOutput { kMarkdown, kCsv, kJson };

// "md", "csv" or "json".
absl::StatusOr<BenchOutput> ParseBenchOutput(absl::string_view name);

// A table. Markdown has notes below it, and JSON has keys of its own, for what
// is the same in all rows: model, machine, read bandwidth. Numbers of CSV and
// JSON are unrounded, in bytes, seconds and tokens per second.
std::string FormatBench(const BenchReport& report, BenchOutput output);
std::string FormatProfileBench(const ProfileBenchReport& report,
                               BenchOutput output);

}  // namespace kvmix
