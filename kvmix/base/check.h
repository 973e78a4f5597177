// KVMIX_CHECK(condition) << "why": stops the program on a bug of ours. What a
// user or a file can cause is an absl::Status instead.
#pragma once

#include <cstdlib>
#include <iostream>
#include <sstream>

namespace kvmix::internal {

class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition) {
    message_ << file << ":" << line << ": check failed: " << condition << " ";
  }
  [[noreturn]] ~CheckFailure() {
    std::cerr << message_.str() << std::endl;
    std::abort();
  }
  std::ostream& stream() { return message_; }

 private:
  std::ostringstream message_;
};

}  // namespace kvmix::internal

#define KVMIX_CHECK(condition) \
  while (!(condition))         \
  ::kvmix::internal::CheckFailure(__FILE__, __LINE__, #condition).stream()
