#include "experiments/command_line.h"

#include <algorithm>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"

namespace kvmix {
namespace {

constexpr char kUsagePayload[] = "kvmix/usage";
constexpr char kHelpPayload[] = "kvmix/help";

std::string Normalized(absl::string_view name) {
  return absl::StrReplaceAll(name, {{"-", "_"}});
}

}  // namespace

absl::Status UsageError(absl::string_view message) {
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kUsagePayload, absl::Cord());
  return status;
}

bool IsUsageError(const absl::Status& status) {
  return status.GetPayload(kUsagePayload).has_value();
}

std::optional<std::string> HelpText(const absl::Status& status) {
  const auto text = status.GetPayload(kHelpPayload);
  if (!text.has_value()) return std::nullopt;
  return std::string(*text);
}

CommandLine::CommandLine(std::string usage, std::string description)
    : usage_(std::move(usage)), description_(std::move(description)) {}

void CommandLine::Flag(const std::string& name, std::string* value,
                       const std::string& help) {
  flags_.push_back({name, help, *value, false, [value](absl::string_view text) {
                      *value = std::string(text);
                      return true;
                    }});
}

void CommandLine::Flag(const std::string& name, int* value,
                       const std::string& help) {
  flags_.push_back({name, help, absl::StrCat(*value), false,
                    [value](absl::string_view text) {
                      return absl::SimpleAtoi(text, value);
                    }});
}

void CommandLine::Flag(const std::string& name, int64_t* value,
                       const std::string& help) {
  flags_.push_back({name, help, absl::StrCat(*value), false,
                    [value](absl::string_view text) {
                      return absl::SimpleAtoi(text, value);
                    }});
}

void CommandLine::Flag(const std::string& name, double* value,
                       const std::string& help) {
  flags_.push_back({name, help, absl::StrCat(*value), false,
                    [value](absl::string_view text) {
                      return absl::SimpleAtod(text, value);
                    }});
}

void CommandLine::Flag(const std::string& name, bool* value,
                       const std::string& help) {
  flags_.push_back({name, help, *value ? "true" : "false", true,
                    [value](absl::string_view text) {
                      return absl::SimpleAtob(text, value);
                    }});
}

void CommandLine::Flag(const std::string& name,
                       std::vector<std::string>* values,
                       const std::string& help) {
  flags_.push_back({name, help, "", false, [values](absl::string_view text) {
                      values->push_back(std::string(text));
                      return true;
                    }});
}

CommandLine::FlagInfo* CommandLine::Find(absl::string_view name) {
  for (FlagInfo& flag : flags_)
    if (Normalized(flag.name) == Normalized(name)) return &flag;
  return nullptr;
}

absl::StatusOr<std::vector<std::string>> CommandLine::Parse(
    absl::Span<const std::string> args) {
  std::vector<std::string> arguments;
  bool flags_ended = false;
  for (size_t i = 0; i < args.size(); ++i) {
    absl::string_view arg = args[i];
    if (flags_ended || arg.size() < 2 || arg[0] != '-') {
      arguments.push_back(args[i]);
      continue;
    }
    if (arg == "--") {
      flags_ended = true;
      continue;
    }
    if (arg == "--help" || arg == "-h") {
      absl::Status help = absl::CancelledError("--help");
      help.SetPayload(kHelpPayload, absl::Cord(Help()));
      return help;
    }
    if (!absl::ConsumePrefix(&arg, "--"))
      return UsageError(absl::StrCat("unknown flag ", args[i]));
    const size_t equals = arg.find('=');
    const absl::string_view name = arg.substr(0, equals);
    FlagInfo* flag = Find(name);
    if (flag == nullptr) {
      return UsageError(
          absl::StrCat("unknown flag --", name, "; --help lists the flags"));
    }
    absl::string_view value = "true";
    if (equals != absl::string_view::npos) {
      value = arg.substr(equals + 1);
    } else if (!flag->is_bool) {
      if (i + 1 == args.size())
        return UsageError(absl::StrCat("--", name, " needs a value"));
      value = args[++i];
    }
    if (!flag->set(value)) {
      return UsageError(
          absl::StrCat("--", name, " does not take the value \"", value, "\""));
    }
  }
  return arguments;
}

absl::Status CommandLine::ParseFlags(absl::Span<const std::string> args) {
  const auto arguments = Parse(args);
  if (!arguments.ok() || arguments->empty()) return arguments.status();
  return UsageError(
      absl::StrCat("takes flags only, not \"", arguments->front(), "\""));
}

std::string CommandLine::Help() const {
  std::string text =
      absl::StrCat("usage: ", usage_, "\n\n", description_, "\n");
  if (!flags_.empty()) text += "\nflags:\n";
  for (const FlagInfo& flag : flags_) {
    const std::string name =
        absl::StrCat("  --", flag.name, flag.is_bool ? "" : "=...");
    absl::StrAppend(&text, name,
                    std::string(name.size() < 24 ? 24 - name.size() : 1, ' '));
    const std::string indented = "\n" + std::string(24, ' ');
    absl::StrAppend(&text, absl::StrReplaceAll(flag.help, {{"\n", indented}}));
    if (!flag.default_text.empty())
      absl::StrAppend(&text, " (default: ", flag.default_text, ")");
    text += "\n";
  }
  return text;
}

}  // namespace kvmix
