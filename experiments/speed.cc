#include "experiments/speed.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kvmix/base/progress_bar.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

struct Rates {
  std::vector<double> prefill;
  std::vector<double> decode;
};

double SecondsSince(absl::Time start) {
  return absl::ToDoubleSeconds(absl::Now() - start);
}

// One round of one method.
absl::Status MeasureOnce(Transformer& model, const RunnableMethod& method,
                         const std::vector<int32_t>& prompt, int decode_tokens,
                         Rates& rates) {
  KVMIX_ASSIGN_OR_RETURN(const std::unique_ptr<KvCache> cache,
                         MakeCache(model, method));
  int32_t next = 0;
  const LogitsConsumer take_best = [&](int, int64_t, int64_t num_rows,
                                       const float* logits) {
    const int64_t vocab_size = model.config().vocab_size;
    const float* row = logits + (num_rows - 1) * vocab_size;
    next = static_cast<int32_t>(std::max_element(row, row + vocab_size) - row);
    return absl::OkStatus();
  };
  absl::Time start = absl::Now();
  const Chunk prefill = {prompt, cache.get(), WantLogits::kLast};
  KVMIX_RETURN_IF_ERROR(model.Forward({&prefill, 1}, take_best));
  rates.prefill.push_back(prompt.size() / SecondsSince(start));
  start = absl::Now();
  for (int i = 0; i < decode_tokens; ++i) {
    const int32_t token = next;
    const Chunk step = {{&token, 1}, cache.get(), WantLogits::kLast};
    KVMIX_RETURN_IF_ERROR(model.Forward({&step, 1}, take_best));
  }
  rates.decode.push_back(decode_tokens / SecondsSince(start));
  return absl::OkStatus();
}

double Median(std::vector<double>& sorted) {
  std::sort(sorted.begin(), sorted.end());
  const size_t middle = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[middle]
                                : (sorted[middle - 1] + sorted[middle]) / 2;
}

MethodSpeed Summarize(const std::string& method, Rates& rates) {
  MethodSpeed speed;
  speed.set_method(method);
  speed.set_rounds(static_cast<int>(rates.prefill.size()));
  speed.set_prefill(Median(rates.prefill));
  speed.set_prefill_low(rates.prefill.front());
  speed.set_prefill_high(rates.prefill.back());
  speed.set_decode(Median(rates.decode));
  speed.set_decode_low(rates.decode.front());
  speed.set_decode_high(rates.decode.back());
  return speed;
}

}  // namespace

absl::StatusOr<std::vector<MethodSpeed>> MeasureSpeed(
    Transformer& model, absl::Span<const RunnableMethod> methods,
    const Speed& speed, absl::Span<const int32_t> text,
    const std::atomic<bool>* stop) {
  if (speed.prompt_tokens() + speed.decode_tokens() >
      model.config().max_position) {
    return absl::InvalidArgumentError(absl::StrCat(
        "speed.prompt_tokens ", speed.prompt_tokens(),
        " and speed.decode_tokens ", speed.decode_tokens(),
        " do not fit in the model's context of ", model.config().max_position));
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
      KVMIX_RETURN_IF_ERROR(MeasureOnce(model, methods[m], prompt,
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
