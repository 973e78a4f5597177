// LayerTrace: what the runtime shows an estimator of one layer on one prompt.
// Only the declared signals are recorded.
//
// T = tokens of the prompt, H = query heads, G = KV heads, D = head_dim, C =
// hidden size. Query head h reads KV head h / (H / G). All arrays are row-major
// float and live only during the call that shows them.
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
  kQueryStates = 1u << 6,              // [T, H, D], after RoPE
  kKeyProjection = 1u << 7,            // [G * D, C], W_k, rotate-half row order
  kValueProjection = 1u << 8,          // [G * D, C], W_v
};

class KeyRotation;

class SignalSet {
 public:
  SignalSet() = default;
  SignalSet(std::initializer_list<Signal> signals) {
    for (Signal s : signals) bits_ |= static_cast<uint32_t>(s);
  }
  bool Has(Signal s) const { return bits_ & static_cast<uint32_t>(s); }
  bool empty() const { return bits_ == 0; }
  bool NeedsGradients() const;
  void Add(const SignalSet& other) { bits_ |= other.bits_; }
  std::string ToString() const;  // "key_states, value_projection_gradient"

 private:
  uint32_t bits_ = 0;
};

struct LayerTrace {
  int prompt = 0;
  int layer = 0;
  int64_t num_tokens = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int hidden_size = 0;
  // A token attends to itself and the tokens before it, to this many at most;
  // 0: to all. Weights are softmax(q . k / sqrt(D)).
  int64_t sliding_window = 0;
  // How the model turned key_states; the prompt's first token has position 0.
  const KeyRotation* key_rotation = nullptr;
  const float* key_states = nullptr;
  const float* value_states = nullptr;
  const float* key_state_gradient = nullptr;
  const float* value_state_gradient = nullptr;
  const float* key_projection_gradient = nullptr;
  const float* value_projection_gradient = nullptr;
  const float* query_states = nullptr;
  const float* key_projection = nullptr;
  const float* value_projection = nullptr;
};

}  // namespace kvmix
