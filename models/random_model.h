// Models of well-known shapes with random weights: for benchmarks and tests
// that need a model's size and cost, not its words.
//
// Weights are a pure function of (seed, tensor, row), made when they are read,
// so that a model costs no memory before it is loaded. Elements are uniform
// with variance 1 / inputs, norm weights are 1: activations keep their size
// through the layers.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "models/model_config.h"
#include "models/weight_source.h"

namespace kvmix {

// "135m"      SmolLM2-135M: 30 layers, hidden size 576, 9 query and 3 KV heads
//             of 64, vocabulary 49152, tied
// "1b"        TinyLlama-1.1B: 22 layers, hidden size 2048, 32 query and 4 KV
//             heads of 64, vocabulary 32000
// "8b-layer"  one layer of Llama-3.1-8B: hidden size 4096, 32 query and 8 KV
//             heads of 128; vocabulary 1024, tied
std::vector<std::string> RandomModelShapes();

// A config by its name above, context 32768; "135m:12" has 12 layers instead of
// the shape's own number. Errors: NotFound lists the names; a number of layers
// outside [1, 1024].
absl::StatusOr<ModelConfig> RandomModelConfig(absl::string_view shape);

// The tensors of `config`, matrices stored as `type` and vectors as F32.
// Errors: a type other than F32, F16, BF16, Q8_0, Q4_0, Q4_1; a matrix whose
// rows are no whole blocks.
absl::StatusOr<std::unique_ptr<WeightSource>> MakeRandomWeights(
    const ModelConfig& config, ElementType type, uint64_t seed);

}  // namespace kvmix
