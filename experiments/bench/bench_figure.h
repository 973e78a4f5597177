// Decode speeds against what the memory allows, as one picture.
#pragma once

#include <string>

#include "experiments/bench/bench.h"

namespace kvmix {

// A roofline: for each row that measured decode, steps a second over the bytes
// that a step must read, both logarithmic, below the lines that the read
// bandwidth of each number of threads draws. SVG; empty if no row measured
// decode.
std::string BenchFigureSvg(const BenchReport& report);

}  // namespace kvmix
