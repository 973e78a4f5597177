// GoogleTest matchers for absl::Status and absl::StatusOr: EXPECT_OK,
// ASSERT_OK, ASSERT_OK_AND_ASSIGN, and StatusIs(code, message matcher).
#pragma once

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvmix/base/status_macros.h"

namespace kvmix::testing {

inline const absl::Status& GetStatus(const absl::Status& status) {
  return status;
}
template <typename T>
const absl::Status& GetStatus(const absl::StatusOr<T>& status_or) {
  return status_or.status();
}

MATCHER(IsOk, "is OK") {
  *result_listener << GetStatus(arg).ToString();
  return GetStatus(arg).ok();
}

MATCHER_P2(StatusIs, code, message_matcher,
           "is a status with the given code and message") {
  const absl::Status& status = GetStatus(arg);
  *result_listener << status.ToString();
  return status.code() == code &&
         ::testing::ExplainMatchResult(
             message_matcher, std::string(status.message()), result_listener);
}

}  // namespace kvmix::testing

#define EXPECT_OK(expr) EXPECT_THAT((expr), ::kvmix::testing::IsOk())
#define ASSERT_OK(expr) ASSERT_THAT((expr), ::kvmix::testing::IsOk())
#define ASSERT_OK_AND_ASSIGN(lhs, expr) \
  KVMIX_ASSERT_OK_AND_ASSIGN_IMPL_(     \
      KVMIX_CONCAT_(kvmix_test_status_or_, __LINE__), lhs, expr)
#define KVMIX_ASSERT_OK_AND_ASSIGN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                                     \
  ASSERT_OK(tmp.status());                               \
  lhs = *std::move(tmp)
