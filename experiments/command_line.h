// Flags of one command: --name=value or --name value, in any order with
// arguments; "-" and "_" in names are the same; "--" ends the flags.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace kvmix {

class CommandLine {
 public:
  // usage: "kvmix run CONFIG [flags]"; description: what the command does.
  CommandLine(std::string usage, std::string description);

  // The variable's value is the default and is shown as such.
  void Flag(const std::string& name, std::string* value,
            const std::string& help);
  void Flag(const std::string& name, int* value, const std::string& help);
  void Flag(const std::string& name, int64_t* value, const std::string& help);
  void Flag(const std::string& name, double* value, const std::string& help);
  // --name, or --name=true and --name=false.
  void Flag(const std::string& name, bool* value, const std::string& help);
  // May be given many times.
  void Flag(const std::string& name, std::vector<std::string>* values,
            const std::string& help);

  // The arguments that are no flags. Errors are usage errors; so that --help
  // ends a command as an error does, it is one, too: see HelpText.
  absl::StatusOr<std::vector<std::string>> Parse(
      absl::Span<const std::string> args);
  // The same for a command that takes flags only.
  absl::Status ParseFlags(absl::Span<const std::string> args);

 private:
  struct FlagInfo {
    std::string name;
    std::string help;
    std::string default_text;
    bool is_bool = false;
    std::function<bool(absl::string_view)> set;
  };
  FlagInfo* Find(absl::string_view name);
  std::string Help() const;

  const std::string usage_;
  const std::string description_;
  std::vector<FlagInfo> flags_;
};

// An error of how a command was called, which ends the program with code 2.
absl::Status UsageError(absl::string_view message);
bool IsUsageError(const absl::Status& status);
// What to print if `status` stands for --help; else nothing.
std::optional<std::string> HelpText(const absl::Status& status);

}  // namespace kvmix
