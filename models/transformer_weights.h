// The weights of a Transformer as its forward and backward passes read them.
//
// C = hidden size, H = query heads, G = KV heads, D = head_dim, I =
// intermediate size.
#pragma once

#include <memory>
#include <vector>

#include "models/linear.h"
#include "models/ops.h"
#include "models/transformer.h"

namespace kvmix {

struct Transformer::Weights {
  struct Layer {
    std::vector<float> input_norm;           // [C]
    std::unique_ptr<LinearLayer> qkv;        // [(H + 2 G) D, C]: q, k, v
    std::vector<float> query_norm;           // [D], with qk_norm
    std::vector<float> key_norm;             // [D], with qk_norm
    std::unique_ptr<LinearLayer> output;     // [C, H D]
    std::vector<float> post_attention_norm;  // [C]
    std::unique_ptr<LinearLayer> gate_up;    // [2 I, C]: gate, up
    std::unique_ptr<LinearLayer> down;       // [C, I]
  };

  Rope rope;
  std::shared_ptr<const KeyRotation> key_rotation;
  std::vector<Layer> layers;
  std::vector<float> final_norm;  // [C]
  // [vocab, C]. One object, once in memory, if the embeddings are tied.
  std::shared_ptr<const LinearLayer> embedding;
  std::shared_ptr<const LinearLayer> lm_head;
};

}  // namespace kvmix
