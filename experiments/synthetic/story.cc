#include "experiments/synthetic/story.h"

#include <set>

#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "experiments/synthetic/draw.h"
#include "experiments/synthetic/vocabulary.h"

namespace kvmix::synthetic {
namespace {

// Capitals are fixed for the person, small letters are drawn anew.
const std::vector<std::vector<absl::string_view>>& Patterns() {
  static const auto* const patterns = [] {
    auto* split = new std::vector<std::vector<absl::string_view>>;
    for (absl::string_view pattern :
         {"$N the $J $v the $A $O in the $P .",
          "the $A $O of $N was near the $P .",
          "then $N went to the $P and $v a $a $o .",
          "$N was a $J , but $H never $v the $O .",
          "$N came from the $P with the $A $O .",
          "every day the $J $N $v a $o at the $P .",
          "$N still had the $A $O , and $H $v it again ."}) {
      split->push_back(absl::StrSplit(pattern, ' '));
    }
    return split;
  }();
  return *patterns;
}

bool IsMan(int who) {
  static const auto* const men = new std::set<int>{
      Word("Tom"),   Word("Ben"),    Word("Dan"),   Word("Finn"),
      Word("Hugo"),  Word("Jack"),   Word("Leo"),   Word("Nick"),
      Word("Oscar"), Word("Ralf"),   Word("Sam"),   Word("Theo"),
      Word("Udo"),   Word("Walter"), Word("Xaver"), Word("Zeno")};
  return men->contains(Symbols().names[who]);
}

}  // namespace

std::vector<int> Story::Sentence(CounterRandom& random) {
  const Alphabets& s = Symbols();
  const int who = static_cast<int>(random.Below(s.names.size()));
  const auto [entry, is_new] = people_.try_emplace(who);
  Person& person = entry->second;
  if (is_new) {
    person = {Pick(random, s.jobs), Pick(random, s.adjectives),
              Pick(random, s.objects), Pick(random, s.places)};
  }
  const std::vector<absl::string_view>& pattern = Pick(random, Patterns());
  std::vector<int> ids;
  for (absl::string_view word : pattern) {
    if (word[0] != '$') {
      ids.push_back(Word(word));
      continue;
    }
    switch (word[1]) {
      case 'N':
        ids.push_back(s.names[who]);
        break;
      case 'J':
        ids.push_back(person.job);
        break;
      case 'A':
        ids.push_back(person.adjective);
        break;
      case 'O':
        ids.push_back(person.object);
        break;
      case 'P':
        ids.push_back(person.place);
        break;
      case 'H':
        ids.push_back(IsMan(who) ? s.he : s.she);
        break;
      case 'v':
        ids.push_back(Pick(random, s.verbs));
        break;
      case 'a':
        ids.push_back(Pick(random, s.adjectives));
        break;
      case 'o':
        ids.push_back(Pick(random, s.objects));
        break;
    }
  }
  return ids;
}

}  // namespace kvmix::synthetic
