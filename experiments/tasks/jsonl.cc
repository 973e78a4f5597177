#include "experiments/tasks/jsonl.h"

#include <iostream>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "experiments/paths.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

constexpr int kMostNamed = 10;  // bad lines that an error spells out

absl::Status ReadLine(
    absl::string_view line,
    const std::function<absl::Status(const nlohmann::json&)>& read) {
  const auto object = nlohmann::json::parse(line, nullptr, false);
  if (object.is_discarded())
    return absl::InvalidArgumentError("is not valid JSON");
  if (!object.is_object())
    return absl::InvalidArgumentError("is not a JSON object");
  return read(object);
}

}  // namespace

absl::Status ReadJsonl(
    const std::string& path, int limit, bool skip_bad,
    const std::function<absl::Status(const nlohmann::json&)>& read) {
  KVMIX_ASSIGN_OR_RETURN(const std::string file, ResolveInputPath(path));
  KVMIX_ASSIGN_OR_RETURN(const std::string text, ReadFile(file));
  int number = 0, good = 0, bad = 0;
  std::string complaints;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    if (limit > 0 && good == limit) break;
    const absl::Status status = ReadLine(line, read);
    good += status.ok();
    if (status.ok()) continue;
    if (++bad <= kMostNamed) {
      absl::StrAppend(&complaints, "\n  line ", number, ": ", status.message());
    }
  }
  if (good == 0 && bad == 0)
    return absl::NotFoundError(absl::StrCat(file, " holds no line"));
  if (bad == 0) return absl::OkStatus();
  if (bad > kMostNamed) {
    absl::StrAppend(&complaints, "\n  and ", bad - kMostNamed, " more");
  }
  const std::string message = absl::StrCat(file, ": ", bad, " bad lines, ",
                                           good, " good ones", complaints);
  if (!skip_bad || good == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(message, "\nmend them, or set skip_bad_lines: true"));
  }
  std::cerr << message << "\n";
  return absl::OkStatus();
}

absl::StatusOr<std::string> JsonText(const nlohmann::json& object,
                                     const char* name) {
  const auto member = object.find(name);
  if (member == object.end())
    return absl::InvalidArgumentError(absl::StrCat("has no \"", name, "\""));
  if (!member->is_string()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", name, "\" is not a text"));
  }
  return member->get<std::string>();
}

absl::StatusOr<std::vector<std::string>> JsonTexts(const nlohmann::json& object,
                                                   const char* name) {
  const auto member = object.find(name);
  if (member == object.end() || !member->is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", name, "\" is not a list of texts"));
  }
  std::vector<std::string> texts;
  for (const auto& element : *member) {
    if (!element.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", name, "\" holds something that is not a text"));
    }
    texts.push_back(element.get<std::string>());
  }
  return texts;
}

}  // namespace kvmix
