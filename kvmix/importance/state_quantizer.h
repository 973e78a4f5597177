// StateQuantizer: what the formats that a plan may choose from do to the states
// of a prompt.
//
// T = tokens, G = KV heads, D = head_dim.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kvmix/cache_plan.pb.h"
#include "kvmix/layer_trace.h"
#include "quant/quantizer.h"

namespace kvmix {

class StateQuantizer {
 public:
  // Errors: a format that its quantizer refuses.
  static absl::StatusOr<StateQuantizer> Make(const FormatChoices& formats,
                                             int head_dim);

  int num_formats(Side side) const {
    return static_cast<int>(codecs(side).size());
  }
  // error [T, G, D]: states as packed and read again, minus the states, from
  // trace.key_states or trace.value_states. Tokens that do not fill a block (or
  // what the format writes at once) are in the window, without error. Full
  // precision has none at all.
  std::vector<float> Error(Side side, int format,
                           const LayerTrace& trace) const;

 private:
  using Codecs = std::vector<std::unique_ptr<BlockCodec>>;  // null: 16 bits
  const Codecs& codecs(Side side) const {
    return side == Side::kKey ? key_ : value_;
  }
  Codecs key_, value_;
};

}  // namespace kvmix
