// The caches of an experiment's methods over one window, on the device that the
// config names.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention/memory_ledger.h"
#include "experiments/runnable_method.h"
#include "models/device_model.h"
#include "models/transformer.h"

namespace kvmix {

// Which model runs the methods. The CPU's is always there.
struct WhereToRun {
  Transformer* cpu = nullptr;
  DeviceModel* device = nullptr;  // null: the CPU
  // Every chunk runs on both, and on the device alone if it is false.
  bool check_against_cpu = false;
};

// What the caches must hold, known before they are made.
struct CacheRoom {
  int64_t max_tokens = 0;
  int64_t max_chunk_tokens = 0;
};

class MethodCaches {
 public:
  virtual ~MethodCaches() = default;
  // Appends the same tokens to every method's cache. Logits are shown as
  // Transformer::Forward shows them; chunk m is method m, in ascending order.
  virtual absl::Status Forward(absl::Span<const int32_t> tokens,
                               WantLogits logits,
                               const LogitsConsumer& consume) = 0;
  virtual MemoryLedger ledger(int method) const = 0;
};

// Largest mean KL divergence, in nats, of a chunk's logits on the device from
// those on the CPU that check_against takes for agreement. Where a key or a
// value is rounded to another half, or to another code, logits differ by more
// than rounding, and those of a few tokens by far more than the mean (codes of
// one bit: 0.02 over 16 tokens). So a chunk of fewer than kComparedTokens is
// judged together with what came before it.
inline constexpr double kMaxDisagreement = 0.01;
inline constexpr double kComparedTokens = 64;

// MakeCache on a device; the eviction policy is the method's. Errors: of
// DeviceModel::NewSequences, with the method's name.
absl::StatusOr<std::unique_ptr<DeviceSequences>> MakeSequences(
    DeviceModel& model, const RunnableMethod& method,
    const SequencesOptions& room);

// A line on stderr, unless the reason (DeviceSequences::WhyOnHost) is empty.
void TellIfOnHost(const std::string& method, const std::string& why_on_host);

// Errors: of MakeCache and MakeSequences. Forward: those of the models; with
// check_against_cpu, DataLoss for a chunk whose logits disagree.
absl::StatusOr<std::unique_ptr<MethodCaches>> MakeMethodCaches(
    const WhereToRun& where, absl::Span<const RunnableMethod> methods,
    const CacheRoom& room);

}  // namespace kvmix
