// A progress line with the remaining time, for whatever takes more than a
// second.
//
//   FP16, KVmix ...  [=========>          ]  47 %  14/30 windows  eta 1m12s
//
// On a terminal the line is redrawn in place, at most ten times a second.
// Elsewhere (a log file) a plain line is written at every tenth part, so that
// logs stay short.
#pragma once

#include <cstdint>
#include <functional>
#include <ostream>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace kvmix {

class ProgressBar {
 public:
  struct Options {
    std::ostream* out = nullptr;                  // Default: std::cerr
    bool terminal = false;                        // redraw in place
    std::function<absl::Time()> now = absl::Now;  // replaceable for tests
  };
  // std::cerr, redrawn in place if it is a terminal.
  static Options StandardError();

  // total: number of units; unit: their name, as "windows".
  ProgressBar(std::string title, int64_t total, std::string unit,
              Options options = StandardError());
  ~ProgressBar();  // ends the line

  void Advance(int64_t units = 1);
  // Units that an earlier run had done: they say nothing of the time that the
  // others take.
  void AdvanceFinished(int64_t units = 1);
  // "1m12s", "3h05m", "8s"; "?" if negative or infinite.
  static std::string FormatDuration(absl::Duration duration);

 private:
  std::string Line() const;
  void Draw(bool force);

  const std::string title_;
  const int64_t total_;
  const std::string unit_;
  const Options options_;
  const absl::Time start_;
  absl::Time last_drawn_ = absl::InfinitePast();
  int64_t done_ = 0;
  int64_t finished_before_ = 0;  // of done_
  int64_t last_tenth_ = 0;
};

}  // namespace kvmix
