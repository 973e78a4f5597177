// Scores of tasks, and where error lies: by group, by position, by place.
#pragma once

#include <string>

#include "absl/types/span.h"
#include "experiments/record.pb.h"

namespace kvmix {

// The score of method `method`; method 0 is full precision. A sample is a
// continuation, or an item of multiple choice. Samples count as independent.
TaskQuality SummarizeTask(absl::Span<const WindowRecord> windows, int method,
                          const std::string& metric);

// Fills in what a dataset's record holds besides its quality and memory.
// metric: the task's; "": no score.
void AddTaskSummaries(absl::Span<const WindowRecord> windows, int method,
                      const std::string& metric, DatasetRecord& dataset);

}  // namespace kvmix
