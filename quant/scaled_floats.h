// Schemes of small floats with one scale a group, a half: the group's largest
// magnitude becomes the largest float.
#pragma once

#include <memory>
#include <vector>

#include "quant/level_codec.h"

namespace kvmix {

// scale = half(max |x| / largest level)
std::unique_ptr<LevelScheme> MakeScaledFloats(std::vector<float> values);

// fp8 of a token of a KV head: a quantizer of 8 bits, groups of head_dim.
std::unique_ptr<Quantizer> MakeFp8Quantizer(const char* name,
                                            std::vector<float> (*values)());

}  // namespace kvmix
