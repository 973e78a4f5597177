// Finds the longest of a set of strings at a place of a text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

namespace kvmix {

class LiteralMatcher {
 public:
  struct Match {
    size_t size = 0;  // 0: nothing matches
    int32_t value = 0;
  };

  // A later Add of the same literal replaces its value. Empty literals are
  // ignored.
  void Add(absl::string_view literal, int32_t value);

  // The longest literal that `text` starts with.
  Match LongestPrefix(absl::string_view text) const;

  bool empty() const { return values_.size() == 1; }

 private:
  static constexpr int32_t kNone = -1;
  // A trie: edges_[node * 256 + byte] is the child, values_[node] the value of
  // the literal that ends there.
  absl::flat_hash_map<uint64_t, uint32_t> edges_;
  std::vector<int32_t> values_ = {kNone};
  bool starts_[256] = {};
};

inline void LiteralMatcher::Add(absl::string_view literal, int32_t value) {
  if (literal.empty()) return;
  starts_[static_cast<uint8_t>(literal[0])] = true;
  uint64_t node = 0;
  for (char c : literal) {
    const auto [edge, inserted] = edges_.try_emplace(
        node * 256 + static_cast<uint8_t>(c), values_.size());
    if (inserted) values_.push_back(kNone);
    node = edge->second;
  }
  values_[node] = value;
}

inline LiteralMatcher::Match LiteralMatcher::LongestPrefix(
    absl::string_view text) const {
  Match best;
  if (text.empty() || !starts_[static_cast<uint8_t>(text[0])]) return best;
  uint64_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto edge = edges_.find(node * 256 + static_cast<uint8_t>(text[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (values_[node] != kNone) best = {i + 1, values_[node]};
  }
  return best;
}

}  // namespace kvmix
