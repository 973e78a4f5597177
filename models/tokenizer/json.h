// JSON from files that nobody vouches for: parsing without exceptions, and
// reading with the type checked and the path of the value in every error.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvmix {

// INVALID_ARGUMENT for malformed JSON or UTF-8, a key that stands twice in one
// object, and more than 64 levels of nesting.
absl::StatusOr<nlohmann::json> ParseJson(absl::string_view text);

// A value inside a document (which must outlive it) and its path there.
class JsonValue {
 public:
  JsonValue(const nlohmann::json& value, std::string path)
      : value_(&value), path_(std::move(path)) {}

  // A member; nullopt if it is absent or null.
  std::optional<JsonValue> Find(const std::string& key) const;
  // A member that must be there.
  absl::StatusOr<JsonValue> Get(const std::string& key) const;
  // A member that has a default.
  absl::StatusOr<bool> BoolOr(const std::string& key, bool absent) const;
  absl::StatusOr<std::string> StringOr(const std::string& key,
                                       const std::string& absent) const;

  absl::StatusOr<bool> Bool() const;
  absl::StatusOr<int64_t> Int() const;
  absl::StatusOr<std::string> String() const;
  absl::StatusOr<std::vector<JsonValue>> Array() const;
  // `value` "is <excerpt> but must be <rule>".
  absl::Status Error(absl::string_view rule) const;

  const nlohmann::json& json() const { return *value_; }
  const std::string& path() const { return path_; }

 private:
  const nlohmann::json* value_;
  std::string path_;
};

}  // namespace kvmix
