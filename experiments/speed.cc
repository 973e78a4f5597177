#include "experiments/speed.h"

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "experiments/spread.h"
#include "kvmix/base/progress_bar.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

// What the rounds of a method gave.
struct Rates {
  std::vector<double> prefill;
  std::vector<double> decode;
  int64_t cache_bytes = 0;  // of the last
  int64_t device_bytes = 0;
};

// Without the memory of passes; 0 without a device.
absl::StatusOr<int64_t> DeviceBytesInUse(const DeviceModel* device) {
  if (device == nullptr) return 0;
  KVMIX_ASSIGN_OR_RETURN(const DeviceMemoryUse use, device->MemoryUse());
  return use.in_use - use.passes;
}

// Seconds of a pass; its most likely successor becomes `next`.
absl::StatusOr<double> TimePass(MethodCaches& caches,
                                absl::Span<const int32_t> tokens,
                                int64_t vocab_size, int32_t& next) {
  const absl::Time start = absl::Now();
  KVMIX_RETURN_IF_ERROR(caches.Forward(
      tokens, WantLogits::kLast,
      [&](int, int64_t, int64_t, const float* logits) {
        next = static_cast<int32_t>(
            std::max_element(logits, logits + vocab_size) - logits);
        return absl::OkStatus();
      }));
  return absl::ToDoubleSeconds(absl::Now() - start);
}

// One round of one method.
absl::Status MeasureOnce(const WhereToRun& where, const RunnableMethod& method,
                         const std::vector<int32_t>& prompt, int decode_tokens,
                         Rates& rates) {
  const int64_t size = static_cast<int64_t>(prompt.size());
  KVMIX_ASSIGN_OR_RETURN(const int64_t before, DeviceBytesInUse(where.device));
  KVMIX_ASSIGN_OR_RETURN(
      const std::unique_ptr<MethodCaches> caches,
      MakeMethodCaches(
          {.cpu = where.cpu, .device = where.device}, {method},
          {.max_tokens = size + decode_tokens, .max_chunk_tokens = size}));
  const int64_t vocab_size = where.cpu->config().vocab_size;
  int32_t next = 0;
  KVMIX_ASSIGN_OR_RETURN(const double prefill,
                         TimePass(*caches, prompt, vocab_size, next));
  double decode = 0;
  for (int step = 0; step < decode_tokens; ++step) {
    const int32_t token = next;
    KVMIX_ASSIGN_OR_RETURN(const double seconds,
                           TimePass(*caches, {&token, 1}, vocab_size, next));
    decode += seconds;
  }
  rates.prefill.push_back(size / prefill);
  rates.decode.push_back(decode_tokens / decode);
  rates.cache_bytes = caches->ledger(0).total();
  KVMIX_ASSIGN_OR_RETURN(const int64_t after, DeviceBytesInUse(where.device));
  rates.device_bytes = after - before;
  return absl::OkStatus();
}

MethodSpeed Summarize(const std::string& method, const Rates& rates) {
  const Spread prefill = SpreadOf(rates.prefill);
  const Spread decode = SpreadOf(rates.decode);
  MethodSpeed speed;
  speed.set_method(method);
  speed.set_rounds(static_cast<int>(rates.prefill.size()));
  speed.set_prefill(prefill.median);
  speed.set_prefill_low(prefill.low);
  speed.set_prefill_high(prefill.high);
  speed.set_decode(decode.median);
  speed.set_decode_low(decode.low);
  speed.set_decode_high(decode.high);
  speed.set_cache_bytes(rates.cache_bytes);
  speed.set_device_bytes(rates.device_bytes);
  return speed;
}

}  // namespace

absl::StatusOr<std::vector<MethodSpeed>> MeasureSpeed(
    const WhereToRun& where, absl::Span<const RunnableMethod> methods,
    const Speed& speed, absl::Span<const int32_t> text,
    const std::atomic<bool>* stop) {
  if (speed.prompt_tokens() + speed.decode_tokens() >
      where.cpu->config().max_position) {
    return absl::InvalidArgumentError(
        absl::StrCat("speed.prompt_tokens ", speed.prompt_tokens(),
                     " and speed.decode_tokens ", speed.decode_tokens(),
                     " do not fit in the model's context of ",
                     where.cpu->config().max_position));
  }
  std::vector<int32_t> prompt(speed.prompt_tokens());
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = text[i % text.size()];
  std::vector<Rates> rates(methods.size());
  ProgressBar bar("speed",
                  static_cast<int64_t>(speed.rounds() * methods.size()),
                  "measurements");
  for (int round = 0; round < speed.rounds(); ++round) {
    for (size_t m = 0; m < methods.size(); ++m) {
      if (stop != nullptr && *stop) return absl::CancelledError("interrupted");
      KVMIX_RETURN_IF_ERROR(MeasureOnce(where, methods[m], prompt,
                                        speed.decode_tokens(), rates[m]));
      bar.Advance();
    }
  }
  std::vector<MethodSpeed> speeds;
  for (size_t m = 0; m < methods.size(); ++m)
    speeds.push_back(Summarize(methods[m].name, rates[m]));
  return speeds;
}

}  // namespace kvmix
