// A run as one picture: quality against compression, and the bits that every
// method gives the keys and values of every layer.
#pragma once

#include <string>

#include "experiments/record.pb.h"

namespace kvmix {

// SVG 1.1, no scripts, no outside fonts.
std::string FigureSvg(const RunRecord& record);

}  // namespace kvmix
