// LayerTrace: what the runtime shows an estimator of one layer on one prompt.
// Only the declared signals are recorded.
//
// T = tokens of the prompt, G = KV heads, D = head_dim, C = hidden size. All
// arrays are row-major float and live only during the call that shows them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

namespace kvmix {

enum class Signal : uint32_t {
  kKeyStates = 1u << 0,           // [T, G, D], after RoPE, as cached
  kValueStates = 1u << 1,         // [T, G, D]
  kKeyStateGradient = 1u << 2,    // [T, G, D], d loss / d key state
  kValueStateGradient = 1u << 3,  // [T, G, D]
  kKeyProjectionGradient =
      1u << 4,  // [G * D, C], d loss / d W_k, rotate-half row order
  kValueProjectionGradient = 1u << 5,  // [G * D, C], d loss / d W_v
};

class SignalSet {
 public:
  SignalSet() = default;
  SignalSet(std::initializer_list<Signal> signals) {
    for (Signal s : signals) bits_ |= static_cast<uint32_t>(s);
  }
  bool Has(Signal s) const { return bits_ & static_cast<uint32_t>(s); }
  bool empty() const { return bits_ == 0; }
  bool NeedsGradients() const { return bits_ >> 2 != 0; }
  void Add(const SignalSet& other) { bits_ |= other.bits_; }
  std::string ToString() const;  // "key_states, value_projection_gradient"

 private:
  uint32_t bits_ = 0;
};

struct LayerTrace {
  int prompt = 0;
  int layer = 0;
  int64_t num_tokens = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int hidden_size = 0;
  const float* key_states = nullptr;
  const float* value_states = nullptr;
  const float* key_state_gradient = nullptr;
  const float* value_state_gradient = nullptr;
  const float* key_projection_gradient = nullptr;
  const float* value_projection_gradient = nullptr;
};

}  // namespace kvmix
