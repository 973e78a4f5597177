#include "kvmix/layer_trace.h"

#include <string>
#include <utility>

namespace kvmix {

bool SignalSet::NeedsGradients() const {
  return Has(Signal::kKeyStateGradient) || Has(Signal::kValueStateGradient) ||
         Has(Signal::kKeyProjectionGradient) ||
         Has(Signal::kValueProjectionGradient);
}

std::string SignalSet::ToString() const {
  static constexpr std::pair<Signal, const char*> kNames[] = {
      {Signal::kKeyStates, "key_states"},
      {Signal::kValueStates, "value_states"},
      {Signal::kKeyStateGradient, "key_state_gradient"},
      {Signal::kValueStateGradient, "value_state_gradient"},
      {Signal::kKeyProjectionGradient, "key_projection_gradient"},
      {Signal::kValueProjectionGradient, "value_projection_gradient"},
      {Signal::kQueryStates, "query_states"},
      {Signal::kKeyProjection, "key_projection"},
      {Signal::kValueProjection, "value_projection"},
  };
  std::string text;
  for (const auto& [signal, name] : kNames) {
    if (!Has(signal)) continue;
    if (!text.empty()) text += ", ";
    text += name;
  }
  return text;
}

}  // namespace kvmix
