#include <google/protobuf/empty.pb.h>

#include <iostream>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "experiments/command_line.h"
#include "experiments/commands.h"
#include "experiments/components.h"
#include "experiments/paths.h"
#include "kvmix/base/file.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace {

// The message's definition as it stands in its .proto, comments and defaults
// included, from the files that come with the program; without them what the
// compiled descriptor still knows.
std::string Definition(const google::protobuf::Descriptor& type) {
  const absl::StatusOr<std::string> path =
      ResolveInputPath(type.file()->name());
  const absl::StatusOr<std::string> file =
      path.ok() ? ReadFile(*path) : path.status();
  if (!file.ok()) return type.DebugString();
  const std::string head = absl::StrCat("message ", type.name(), " {");
  std::string text;
  bool inside = false;
  for (absl::string_view line : absl::StrSplit(*file, '\n')) {
    inside = inside || absl::StartsWith(line, head);
    if (inside) absl::StrAppend(&text, line, "\n");
    if (inside && line == "}") return text;
  }
  return type.DebugString();
}

std::string Indented(const std::string& text) {
  std::string indented;
  for (absl::string_view line : absl::StrSplit(text, '\n'))
    if (!line.empty()) absl::StrAppend(&indented, "      ", line, "\n");
  return indented;
}

}  // namespace

absl::Status ListCommand(absl::Span<const std::string> args,
                         const std::atomic<bool>&) {
  CommandLine command_line(
      "kvmix list [KIND] [flags]",
      "Lists the components that are linked into this program, by the config "
      "field that\nnames them, with their options.");
  bool names_only = false;
  command_line.Flag("names_only", &names_only, "leave the options out");
  KVMIX_ASSIGN_OR_RETURN(const std::vector<std::string> arguments,
                         command_line.Parse(args));
  if (arguments.size() > 1) return UsageError("takes at most one kind");
  bool found = false;
  std::string kinds;
  for (const ComponentKind& kind : LinkedComponents()) {
    absl::StrAppend(&kinds, kinds.empty() ? "" : ", ", kind.field);
    if (!arguments.empty() && arguments[0] != kind.field) continue;
    found = true;
    std::cout << kind.field << "\n";
    for (const ComponentDescription& component : kind.components) {
      std::cout << "  " << component.name << ": " << component.summary << "\n";
      if (!names_only &&
          component.options != google::protobuf::Empty::descriptor())
        std::cout << Indented(Definition(*component.options));
    }
    std::cout << "\n";
  }
  if (found) return absl::OkStatus();
  return UsageError(
      absl::StrCat("there is no kind \"", arguments[0], "\"; kinds: ", kinds));
}

}  // namespace kvmix
