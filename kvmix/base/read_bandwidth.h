// How fast this machine reads memory: what a decode step, which reads all
// weights and the whole cache once, cannot beat.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "kvmix/base/thread_pool.h"

namespace kvmix {

// Bytes per second that all threads of the pool read together: full vectors,
// each thread its own part of a buffer of `bytes` in huge pages (where the
// system gives them), with and without software prefetch; the fastest of a few
// passes. A buffer much larger than the caches measures memory.
// ResourceExhausted: no room for the buffer.
absl::StatusOr<double> MeasureReadBandwidth(ThreadPool& threads,
                                            int64_t bytes = 512 << 20);

}  // namespace kvmix
