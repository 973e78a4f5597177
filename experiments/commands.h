// The commands of the kvmix program, one .cc each.
#pragma once

#include <atomic>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace kvmix {

struct Command {
  const char* name;
  const char* summary;
  // args: what follows the command's name. *stop becomes true on Ctrl-C.
  absl::Status (*run)(absl::Span<const std::string> args,
                      const std::atomic<bool>& stop);
};

absl::Status RunCommand(absl::Span<const std::string> args,
                        const std::atomic<bool>& stop);
absl::Status SweepCommand(absl::Span<const std::string> args,
                          const std::atomic<bool>& stop);
absl::Status CellCommand(absl::Span<const std::string> args,
                         const std::atomic<bool>& stop);
absl::Status TablesCommand(absl::Span<const std::string> args,
                           const std::atomic<bool>& stop);
absl::Status ReportCommand(absl::Span<const std::string> args,
                           const std::atomic<bool>& stop);
absl::Status ExchangeCommand(absl::Span<const std::string> args,
                             const std::atomic<bool>& stop);
absl::Status SheetCommand(absl::Span<const std::string> args,
                          const std::atomic<bool>& stop);
absl::Status MagnitudesCommand(absl::Span<const std::string> args,
                               const std::atomic<bool>& stop);
absl::Status ProfileCommand(absl::Span<const std::string> args,
                            const std::atomic<bool>& stop);
absl::Status PlanCommand(absl::Span<const std::string> args,
                         const std::atomic<bool>& stop);
absl::Status GenerateCommand(absl::Span<const std::string> args,
                             const std::atomic<bool>& stop);
absl::Status TokenizeCommand(absl::Span<const std::string> args,
                             const std::atomic<bool>& stop);
absl::Status LogitsCommand(absl::Span<const std::string> args,
                           const std::atomic<bool>& stop);
absl::Status BenchCommand(absl::Span<const std::string> args,
                          const std::atomic<bool>& stop);
absl::Status InspectCommand(absl::Span<const std::string> args,
                            const std::atomic<bool>& stop);
absl::Status CompareEstimatorsCommand(absl::Span<const std::string> args,
                                      const std::atomic<bool>& stop);
absl::Status CalibrateCodebookCommand(absl::Span<const std::string> args,
                                      const std::atomic<bool>& stop);
absl::Status ListCommand(absl::Span<const std::string> args,
                         const std::atomic<bool>& stop);

absl::Span<const Command> Commands();

}  // namespace kvmix
