// Checks of single option values. Every error names the field, its value and
// the rule.
#pragma once

#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace kvmix {

template <typename T>
absl::Status ValidateIsPositive(T value, absl::string_view field) {
  if (value > T{0} && std::isfinite(static_cast<double>(value)))
    return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, " but must be positive and finite"));
}

template <typename T>
absl::Status ValidateIsNonNegative(T value, absl::string_view field) {
  if (value >= T{0} && std::isfinite(static_cast<double>(value)))
    return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, " but must be finite and at least 0"));
}

// low <= value <= high.
template <typename T>
absl::Status ValidateIsInRange(T value, T low, T high,
                               absl::string_view field) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      field, " is ", value, " but must be in [", low, ", ", high, "]"));
}

template <typename T>
absl::Status ValidateDivides(T divisor, T dividend,
                             absl::string_view divisor_field,
                             absl::string_view dividend_field) {
  if (divisor > T{0} && dividend % divisor == T{0}) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(divisor_field, " is ", divisor, " but must divide ",
                   dividend_field, " ", dividend));
}

}  // namespace kvmix
