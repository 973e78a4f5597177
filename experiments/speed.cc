#include "experiments/speed.h"

#include "absl/strings/str_cat.h"
#include "experiments/spread.h"
#include "experiments/timed_passes.h"
#include "kvmix/base/progress_bar.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

struct Rates {
  std::vector<double> prefill;
  std::vector<double> decode;
};

// One round of one method.
absl::Status MeasureOnce(Transformer& model, const RunnableMethod& method,
                         const std::vector<int32_t>& prompt, int decode_tokens,
                         Rates& rates) {
  CacheBatch caches(1);
  KVMIX_ASSIGN_OR_RETURN(caches[0], MakeCache(model, method));
  std::vector<int32_t> next;
  KVMIX_ASSIGN_OR_RETURN(const double prefill,
                         TimePrefill(model, caches, prompt, next));
  KVMIX_ASSIGN_OR_RETURN(const double decode,
                         TimeDecode(model, caches, decode_tokens, next));
  rates.prefill.push_back(prompt.size() / prefill);
  rates.decode.push_back(decode_tokens / decode);
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
