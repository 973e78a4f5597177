#include "experiments/tasks/text_scores.h"

#include <algorithm>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace kvmix {
namespace {

using Words = std::vector<std::string>;

Words Split(absl::string_view text) {
  return absl::StrSplit(text, absl::ByAnyChar(" \t\r\n"), absl::SkipEmpty());
}

// Words of letters and digits, in lower case.
Words PlainWords(absl::string_view text) {
  std::string plain = absl::AsciiStrToLower(text);
  for (char& c : plain) {
    if (!absl::ascii_isalnum(c) && static_cast<unsigned char>(c) < 128) c = ' ';
  }
  return Split(plain);
}

double FMeasure(double common, double a, double b) {
  return common > 0 ? 2 * common / (a + b) : 0;
}

// Length of the longest common subsequence.
size_t CommonSubsequence(const Words& a, const Words& b) {
  std::vector<size_t> row(b.size() + 1, 0);
  for (const std::string& word : a) {
    size_t diagonal = 0;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t above = row[j + 1];
      row[j + 1] = word == b[j] ? diagonal + 1 : std::max(row[j + 1], row[j]);
      diagonal = above;
    }
  }
  return row.back();
}

size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t above = row[j + 1];
      row[j + 1] =
          std::min({above + 1, row[j] + 1, diagonal + (a[i] == b[j] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row.back();
}

absl::string_view FirstLineOfCode(absl::string_view text) {
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const absl::string_view bare = absl::StripAsciiWhitespace(line);
    if (bare.empty() || absl::StartsWith(bare, "#") ||
        absl::StartsWith(bare, "//") || absl::StartsWith(bare, "```"))
      continue;
    return line;
  }
  return "";
}

// Runs of digits, with a sign and a decimal point where they are part of the
// number; thousands' commas removed.
Words Numbers(absl::string_view text) {
  Words numbers;
  std::string number;
  const auto end_number = [&] {
    while (!number.empty() && number.back() == '.') number.pop_back();
    if (number.find_first_of("0123456789") != std::string::npos)
      numbers.push_back(number);
    number.clear();
  };
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const bool digit_follows =
        i + 1 < text.size() && absl::ascii_isdigit(text[i + 1]);
    if (absl::ascii_isdigit(c)) {
      number += c;
    } else if (c == '.' && !number.empty() &&
               number.find('.') == std::string::npos && digit_follows) {
      number += c;
    } else if (c == ',' && !number.empty() && digit_follows) {
      continue;
    } else {
      end_number();
      if (c == '-' && digit_follows) number.push_back('-');
    }
  }
  end_number();
  return numbers;
}

}  // namespace

std::string NormalizedAnswer(absl::string_view text) {
  std::string lower = absl::AsciiStrToLower(text);
  std::erase_if(lower, [](char c) { return absl::ascii_ispunct(c); });
  Words words = Split(lower);
  std::erase_if(words, [](const std::string& word) {
    return word == "a" || word == "an" || word == "the";
  });
  return absl::StrJoin(words, " ");
}

double WordF1(absl::string_view text, absl::string_view reference) {
  const Words own = Split(NormalizedAnswer(text));
  const Words wanted = Split(NormalizedAnswer(reference));
  std::map<std::string, int> left;
  for (const std::string& word : wanted) ++left[word];
  int common = 0;
  for (const std::string& word : own) common += left[word]-- > 0;
  return FMeasure(common, static_cast<double>(own.size()),
                  static_cast<double>(wanted.size()));
}

double RougeL(absl::string_view text, absl::string_view reference) {
  const Words own = PlainWords(text), wanted = PlainWords(reference);
  return FMeasure(static_cast<double>(CommonSubsequence(own, wanted)),
                  static_cast<double>(own.size()),
                  static_cast<double>(wanted.size()));
}

double Classification(absl::string_view text, absl::string_view reference,
                      const std::vector<std::string>& classes) {
  int named = 0;
  bool right = false;
  for (const std::string& name : classes) {
    if (!absl::StrContains(text, name)) continue;
    if (name == reference) {
      right = true;
    } else if (absl::StrContains(reference, name)) {
      continue;
    }
    ++named;
  }
  return right ? 1.0 / named : 0;
}

double Retrieval(absl::string_view text, absl::string_view reference) {
  const Words wanted = Numbers(reference), own = Numbers(text);
  if (wanted.empty() || own.empty()) return 0;
  return static_cast<double>(
             std::count(own.begin(), own.end(), wanted.back())) /
         static_cast<double>(own.size());
}

double EditSimilarity(absl::string_view text, absl::string_view reference) {
  const absl::string_view line = FirstLineOfCode(text);
  const size_t longer = std::max(line.size(), reference.size());
  if (longer == 0) return 1;
  return 1 - static_cast<double>(EditDistance(line, reference)) /
                 static_cast<double>(longer);
}

std::string FinalNumber(absl::string_view text) {
  const size_t mark = text.rfind("####");
  if (mark != absl::string_view::npos) {
    const Words behind = Numbers(text.substr(mark));
    if (!behind.empty()) return behind.front();
  }
  const Words numbers = Numbers(text);
  return numbers.empty() ? "" : numbers.back();
}

}  // namespace kvmix
