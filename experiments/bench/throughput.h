// kvmix bench --throughput: tokens per second of batches that are served whole.
//
// Every sequence takes a prompt, several of them in one pass, and then all
// generate together, greedily, until each has `decode_tokens` tokens; the first
// comes with the prompt. Caches that are smaller pay here: memory holds more
// sequences, which share each reading of the weights (Li et al., arXiv
// 2506.08018, figure of throughput: 688 tokens in, 1024 out).
//
// The largest batch (kLargestBatch) is found by asking: on a device, batches
// double until one cannot be allocated and run, and are halved in between from
// there; on the CPU, whose caches grow as they are used, by the bytes of one
// sequence and `memory_limit`. Caches of a model on a device that lie in host
// memory (DeviceSequences::WhyOnHost) are served in batches of given size.
#pragma once

#include <atomic>

#include "absl/status/statusor.h"
#include "experiments/bench/bench.h"

namespace kvmix {

// Errors: those of RunBench; ResourceExhausted, with the bytes, for a batch
// that does not fit.
absl::StatusOr<BenchReport> RunThroughput(const BenchOptions& options,
                                          const std::atomic<bool>* stop);

}  // namespace kvmix
