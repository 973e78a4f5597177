#include "experiments/table.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace kvmix {
namespace {

// Columns of a terminal that a UTF-8 text takes: its code points.
size_t Width(const std::string& text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

std::string Padded(const std::string& text, size_t width, bool left) {
  const std::string space(width - Width(text), ' ');
  return left ? text + space : space + text;
}

std::vector<size_t> Widths(const Table& table) {
  std::vector<size_t> widths;
  for (const std::string& cell : table.header) widths.push_back(Width(cell));
  for (const auto& row : table.rows)
    for (size_t i = 0; i < row.size(); ++i)
      widths[i] = std::max(widths[i], Width(row[i]));
  return widths;
}

std::string Line(const std::vector<std::string>& cells,
                 const std::vector<size_t>& widths, const char* separator) {
  std::vector<std::string> padded;
  for (size_t i = 0; i < cells.size(); ++i)
    padded.push_back(Padded(cells[i], widths[i], i == 0));
  return absl::StrJoin(padded, separator);
}

std::string CsvCell(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  return absl::StrCat("\"", absl::StrReplaceAll(text, {{"\"", "\"\""}}), "\"");
}

}  // namespace

void Table::PutInFront(const std::vector<std::string>& names,
                       const std::vector<std::string>& values) {
  header.insert(header.begin(), names.begin(), names.end());
  for (auto& row : rows) row.insert(row.begin(), values.begin(), values.end());
}

void Table::Append(const Table& more) {
  std::vector<size_t> places;  // in this table, of the other's columns
  std::vector<bool> taken(header.size());
  for (const std::string& name : more.header) {
    size_t place = 0;
    while (place < header.size() && (taken[place] || header[place] != name))
      ++place;
    if (place == header.size()) {
      header.push_back(name);
      taken.push_back(false);
    }
    taken[place] = true;
    places.push_back(place);
  }
  for (auto& row : rows) row.resize(header.size());
  for (const auto& cells : more.rows) {
    std::vector<std::string> row(header.size());
    for (size_t i = 0; i < cells.size(); ++i) row[places[i]] = cells[i];
    rows.push_back(std::move(row));
  }
}

std::string Table::Markdown() const {
  const std::vector<size_t> widths = Widths(*this);
  const auto line = [&](std::vector<std::string> cells) {
    for (std::string& cell : cells)
      cell = absl::StrReplaceAll(cell, {{"|", "/"}});
    return absl::StrCat("| ", Line(cells, widths, " | "), " |\n");
  };
  std::string text = line(header);
  for (size_t i = 0; i < header.size(); ++i) {
    const std::string dashes(widths[i] + 1, '-');
    absl::StrAppend(&text, "|", i == 0 ? dashes + "-" : dashes + ":");
  }
  text += "|\n";
  for (const auto& row : rows) text += line(row);
  return text;
}

std::string Table::Csv() const {
  std::string text;
  const auto append = [&](const std::vector<std::string>& cells) {
    std::vector<std::string> quoted;
    for (const std::string& cell : cells) quoted.push_back(CsvCell(cell));
    absl::StrAppend(&text, absl::StrJoin(quoted, ","), "\n");
  };
  append(header);
  for (const auto& row : rows) append(row);
  return text;
}

std::string Table::Aligned() const {
  const std::vector<size_t> widths = Widths(*this);
  std::string text = Line(header, widths, "  ") + "\n";
  text += std::string(Width(text) - 1, '-') + "\n";
  for (const auto& row : rows) text += Line(row, widths, "  ") + "\n";
  return text;
}

}  // namespace kvmix
