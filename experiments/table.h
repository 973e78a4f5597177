// A table of texts, written three ways.
#pragma once

#include <string>
#include <vector>

namespace kvmix {

// The first column is aligned to the left, the others to the right.
struct Table {
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;  // as long as the header

  std::string Markdown() const;
  std::string Csv() const;  // RFC 4180
  std::string Aligned() const;
};

}  // namespace kvmix
