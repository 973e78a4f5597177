#pragma once

namespace kvmix {

// How products with packed codes are computed by a chunk of few queries.
enum class AttentionArithmetic {
  kFloat,  // in float: exact but for rounding. Wherever quality is measured.
  kInt8,   // queries and attention weights, times the scales, rounded to 8
           // bits: faster, for codes of at most 4 bits
};

}  // namespace kvmix
