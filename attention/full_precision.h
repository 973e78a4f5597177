// The numbers that a cache holds of tokens that are not packed, in memory: half
// unless its plan says otherwise (CachePlan::FullPrecision).
#pragma once

#include <cstdint>

#include "kvmix/base/half.h"

namespace kvmix {

enum class NumberType : int { kHalf, kBFloat16, kFloat };

constexpr int64_t BytesOf(NumberType type) {
  return type == NumberType::kFloat ? 4 : 2;
}
constexpr const char* NameOf(NumberType type) {
  return type == NumberType::kHalf       ? "half"
         : type == NumberType::kBFloat16 ? "bfloat16"
                                         : "float";
}

// body(p), p being `numbers` as what it points to.
template <class Body>
auto VisitNumbers(NumberType type, const void* numbers, const Body& body) {
  if (type == NumberType::kHalf) return body(static_cast<const Half*>(numbers));
  if (type == NumberType::kBFloat16)
    return body(static_cast<const BFloat16*>(numbers));
  return body(static_cast<const float*>(numbers));
}

// x [n] = numbers [n]
void ToFloats(NumberType type, const void* numbers, int64_t n, float* x);
// numbers [n] = x [n], rounded to nearest, ties to even.
void FromFloats(NumberType type, const float* x, int64_t n, void* numbers);

}  // namespace kvmix
