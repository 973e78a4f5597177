// The pieces of the synthetic text: bytes and words, by token id, and the sets
// that the tasks draw from.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace kvmix::synthetic {

// The text of every token, by id; empty for the special tokens.
const std::vector<std::string>& Vocabulary();

// The id of a word, given without its leading space. Precondition: it is one of
// the vocabulary's.
int Word(absl::string_view word);

// The same for words separated by single spaces.
std::vector<int> Words(absl::string_view list);

struct Alphabets {
  std::vector<int> names, jobs, verbs, objects, adjectives, places;
  std::vector<int> digits, hex, alphanumeric, content_words;
  // The first letters of recalled values and of variables, and of a variable's
  // value: disjoint, so that the form of an answer tells whether the trace is
  // at its end.
  std::vector<int> value_letters, constant_letters;
  int semicolon, ask, colon, equals, hash;
  int copy, trace, add, count;
  int he, she;
};

// One object, built once.
const Alphabets& Symbols();

}  // namespace kvmix::synthetic
