#include "kvmix/base/progress_bar.h"

#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <utility>

#include "absl/strings/str_format.h"

namespace kvmix {

ProgressBar::Options ProgressBar::StandardError() {
  return {.out = &std::cerr, .terminal = isatty(STDERR_FILENO) == 1};
}

ProgressBar::ProgressBar(std::string title, int64_t total, std::string unit,
                         Options options)
    : title_(std::move(title)),
      total_(std::max<int64_t>(total, 1)),
      unit_(std::move(unit)),
      options_(std::move(options)),
      start_(options_.now()) {
  if (options_.terminal) Draw(/*force=*/true);
}

ProgressBar::~ProgressBar() {
  if (!options_.terminal) return;
  Draw(/*force=*/true);
  *options_.out << "\n" << std::flush;
}

void ProgressBar::Advance(int64_t units) {
  done_ = std::min(done_ + units, total_);
  Draw(/*force=*/false);
}

void ProgressBar::AdvanceFinished(int64_t units) {
  finished_before_ += std::min(units, total_ - done_);
  Advance(units);
}

std::string ProgressBar::FormatDuration(absl::Duration duration) {
  if (duration < absl::ZeroDuration() || duration == absl::InfiniteDuration())
    return "?";
  const int64_t seconds =
      absl::ToInt64Seconds(duration + absl::Milliseconds(500));
  if (seconds < 60) return absl::StrFormat("%ds", seconds);
  if (seconds < 3600)
    return absl::StrFormat("%dm%02ds", seconds / 60, seconds % 60);
  return absl::StrFormat("%dh%02dm", seconds / 3600, seconds / 60 % 60);
}

std::string ProgressBar::Line() const {
  constexpr int kWidth = 24;
  const int filled = static_cast<int>(done_ * kWidth / total_);
  const absl::Duration elapsed = options_.now() - start_;
  const int64_t timed = done_ - finished_before_;
  const std::string time =
      done_ == total_
          ? "took " + FormatDuration(elapsed)
          : "eta " + FormatDuration(
                         timed > 0
                             ? elapsed *
                                   (static_cast<double>(total_ - done_) / timed)
                             : absl::InfiniteDuration());
  return absl::StrFormat("%s  [%s%s]  %d %%  %d/%d %s  %s", title_,
                         std::string(filled, '='),
                         std::string(kWidth - filled, ' '),
                         done_ * 100 / total_, done_, total_, unit_, time);
}

void ProgressBar::Draw(bool force) {
  if (options_.terminal) {
    const absl::Time now = options_.now();
    if (!force && done_ < total_ && now - last_drawn_ < absl::Milliseconds(100))
      return;
    last_drawn_ = now;
    *options_.out << "\r\x1b[K" << Line() << std::flush;
    return;
  }
  const int64_t tenth = done_ * 10 / total_;
  if (tenth == last_tenth_) return;
  last_tenth_ = tenth;
  *options_.out << Line() << "\n" << std::flush;
}

}  // namespace kvmix
