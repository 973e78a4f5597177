// KVMIX_RETURN_IF_ERROR(expr) and KVMIX_ASSIGN_OR_RETURN(lhs, expr): hand a
// failed absl::Status to the caller. AddContext puts a place ("layer 7 keys")
// before a failed status's message; say it once, where the name is known.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#define KVMIX_RETURN_IF_ERROR(expr)                               \
  do {                                                            \
    if (absl::Status kvmix_status_ = (expr); !kvmix_status_.ok()) \
      return kvmix_status_;                                       \
  } while (false)

#define KVMIX_ASSIGN_OR_RETURN(lhs, expr)                                      \
  KVMIX_ASSIGN_OR_RETURN_IMPL_(KVMIX_CONCAT_(kvmix_status_or_, __LINE__), lhs, \
                               expr)

#define KVMIX_CONCAT_IMPL_(a, b) a##b
#define KVMIX_CONCAT_(a, b) KVMIX_CONCAT_IMPL_(a, b)
#define KVMIX_ASSIGN_OR_RETURN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                                 \
  if (!tmp.ok()) return std::move(tmp).status();     \
  lhs = *std::move(tmp)

namespace kvmix {

inline absl::Status AddContext(const absl::Status& status,
                               absl::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat(context, ": ", status.message()));
}

}  // namespace kvmix
