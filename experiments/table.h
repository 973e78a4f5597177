// A table of texts, written three ways.
#pragma once

#include <string>
#include <vector>

namespace kvmix {

// The first column is aligned to the left, the others to the right.
struct Table {
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;  // as long as the header

  // Columns in front that hold the same in every row.
  void PutInFront(const std::vector<std::string>& names,
                  const std::vector<std::string>& values);
  // The rows of another table below, each cell under the column of its name.
  // Columns that are new come last; cells that a row lacks are empty.
  void Append(const Table& more);

  std::string Markdown() const;
  std::string Csv() const;  // RFC 4180
  std::string Aligned() const;
};

}  // namespace kvmix
