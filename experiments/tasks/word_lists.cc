#include "experiments/tasks/word_lists.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvmix/base/random.h"

namespace kvmix {
namespace {

// All words of the vocabulary, with their leading spaces, in a random order.
std::vector<int> ShuffledWords(CounterRandom& random) {
  std::vector<int> words;
  for (int id = kFirstWord; id < kSyntheticVocabularySize; ++id) {
    // Some of the words are marks.
    const absl::string_view text = SyntheticTokenText(id);
    if (text.size() > 2 && text[1] >= 'a' && text[1] <= 'z')
      words.push_back(id);
  }
  for (size_t i = words.size(); i > 1; --i)
    std::swap(words[i - 1], words[random.Below(i)]);
  return words;
}

}  // namespace

absl::StatusOr<SyntheticDocument> WordListDocument(int tokens, int asked,
                                                   uint64_t seed,
                                                   uint64_t index) {
  CounterRandom random(seed, index);
  const std::vector<int> words = ShuffledWords(random);
  std::vector<int> list;
  double count = tokens / 5.0;
  for (int i = 0; i < asked; ++i, count /= 1.5)
    list.insert(list.end(), static_cast<size_t>(count), words[i]);
  // The rest fills up with words that stay rarer than the rarest asked for.
  for (size_t i = asked; static_cast<int>(list.size()) < tokens; ++i)
    list.push_back(words[asked + i % (words.size() - asked)]);
  for (size_t i = list.size(); i > 1; --i)
    std::swap(list[i - 1], list[random.Below(i)]);

  SyntheticDocument document = {};
  for (int id : list) absl::StrAppend(&document.text, SyntheticTokenText(id));
  document.context_bytes = static_cast<int>(document.text.size());
  document.context_tokens = tokens;
  Answer answer = {};
  answer.question = document.context_bytes;
  document.text += " ? most =";
  answer.begin = static_cast<int>(document.text.size());
  for (int i = 0; i < asked; ++i)
    absl::StrAppend(&document.text, SyntheticTokenText(words[i]));
  answer.length = static_cast<int>(document.text.size()) - answer.begin;
  document.text += " ;";
  document.answers.push_back(answer);
  return document;
}

}  // namespace kvmix
