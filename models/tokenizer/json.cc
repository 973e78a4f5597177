#include "models/tokenizer/json.h"

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

constexpr int kMaxDepth = 64;

std::string Excerpt(const nlohmann::json& value) {
  if (value.is_structured()) return value.is_array() ? "an array" : "an object";
  std::string text =
      value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

}  // namespace

absl::StatusOr<nlohmann::json> ParseJson(absl::string_view text) {
  using Event = nlohmann::json::parse_event_t;
  absl::Status status;
  std::vector<absl::flat_hash_set<std::string>> keys;  // of the open objects
  const auto check = [&](int depth, Event event, nlohmann::json& parsed) {
    if (!status.ok()) return false;
    if (event == Event::object_start || event == Event::array_start) {
      if (depth >= kMaxDepth) {
        status = absl::InvalidArgumentError(absl::StrCat(
            "JSON is nested more than ", kMaxDepth, " levels deep"));
      }
      if (event == Event::object_start) keys.emplace_back();
    } else if (event == Event::object_end) {
      keys.pop_back();
    } else if (event == Event::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) {
        status = absl::InvalidArgumentError(absl::StrCat(
            "JSON has the key ", Excerpt(parsed), " twice in one object"));
      }
    }
    return status.ok();
  };
  try {
    nlohmann::json document =
        nlohmann::json::parse(text.begin(), text.end(), check);
    KVMIX_RETURN_IF_ERROR(status);
    return document;
  } catch (const nlohmann::json::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat("not JSON: ", e.what()));
  }
}

std::optional<JsonValue> JsonValue::Find(const std::string& key) const {
  if (!value_->is_object()) return std::nullopt;
  const auto it = value_->find(key);
  if (it == value_->end() || it->is_null()) return std::nullopt;
  return JsonValue(*it, path_.empty() ? key : absl::StrCat(path_, ".", key));
}

absl::StatusOr<JsonValue> JsonValue::Get(const std::string& key) const {
  if (const auto member = Find(key)) return *member;
  return absl::InvalidArgumentError(absl::StrCat(
      path_.empty() ? "the document" : path_, " has no \"", key, "\""));
}

absl::StatusOr<bool> JsonValue::BoolOr(const std::string& key,
                                       bool absent) const {
  const auto member = Find(key);
  if (!member) return absent;
  return member->Bool();
}

absl::StatusOr<std::string> JsonValue::StringOr(
    const std::string& key, const std::string& absent) const {
  const auto member = Find(key);
  if (!member) return absent;
  return member->String();
}

absl::StatusOr<bool> JsonValue::Bool() const {
  if (!value_->is_boolean()) return Error("true or false");
  return value_->get<bool>();
}

absl::StatusOr<int64_t> JsonValue::Int() const {
  if (!value_->is_number_integer()) return Error("an integer");
  if (value_->is_number_unsigned() &&
      value_->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
    return Error("less than 2^63");
  }
  return value_->get<int64_t>();
}

absl::StatusOr<std::string> JsonValue::String() const {
  if (!value_->is_string()) return Error("a string");
  return value_->get<std::string>();
}

absl::StatusOr<std::vector<JsonValue>> JsonValue::Array() const {
  if (!value_->is_array()) return Error("an array");
  std::vector<JsonValue> items;
  items.reserve(value_->size());
  for (size_t i = 0; i < value_->size(); ++i)
    items.emplace_back((*value_)[i], absl::StrCat(path_, "[", i, "]"));
  return items;
}

absl::Status JsonValue::Error(absl::string_view rule) const {
  return absl::InvalidArgumentError(
      absl::StrCat(path_.empty() ? "the document" : path_, " is ",
                   Excerpt(*value_), " but must be ", rule));
}

}  // namespace kvmix
