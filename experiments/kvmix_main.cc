// kvmix COMMAND ...: the command line of the framework. `kvmix --help` lists
// the commands, `kvmix COMMAND --help` describes one.
#include <csignal>
#include <iostream>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "experiments/command_line.h"
#include "experiments/commands.h"

namespace kvmix {
namespace {

constexpr int kFailed = 1;
constexpr int kBadUsage = 2;
constexpr int kInterrupted = 130;

std::atomic<bool> stop = false;

// The first Ctrl-C asks the program to finish what it must; the second ends it.
void StopOnInterrupt() {
  struct sigaction action = {};
  action.sa_handler = [](int) { stop = true; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

std::string Overview() {
  std::string text =
      "usage: kvmix COMMAND ...\n\nMeasures and compresses the key-value cache "
      "of language models.\n\ncommands (kvmix COMMAND --help describes one):\n";
  for (const Command& command : Commands())
    absl::StrAppendFormat(&text, "  %-10s %s\n", command.name, command.summary);
  return text;
}

int Main(const std::vector<std::string>& args) {
  if (args.empty()) {
    std::cerr << Overview();
    return kBadUsage;
  }
  if (args[0] == "--help" || args[0] == "-h" || args[0] == "help") {
    std::cout << Overview();
    return 0;
  }
  for (const Command& command : Commands()) {
    if (args[0] != command.name) continue;
    const absl::Status status =
        command.run(absl::MakeConstSpan(args).subspan(1), stop);
    if (status.ok()) return 0;
    if (const auto help = HelpText(status)) {
      std::cout << *help;
      return 0;
    }
    std::cerr << "kvmix " << command.name << ": "
              << absl::StatusCodeToString(status.code()) << ": "
              << status.message() << "\n";
    if (absl::IsCancelled(status)) return kInterrupted;
    return IsUsageError(status) ? kBadUsage : kFailed;
  }
  std::cerr << "kvmix: there is no command \"" << args[0] << "\"\n\n"
            << Overview();
  return kBadUsage;
}

}  // namespace
}  // namespace kvmix

int main(int argc, char** argv) {
  kvmix::StopOnInterrupt();
  return kvmix::Main(std::vector<std::string>(argv + 1, argv + argc));
}
