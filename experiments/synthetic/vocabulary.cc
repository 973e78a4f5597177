#include "experiments/synthetic/vocabulary.h"

#include <functional>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "experiments/synthetic/synthetic_text.h"

namespace kvmix::synthetic {
namespace {

constexpr absl::string_view kPunctuation = ". , ; ? : = #";
constexpr absl::string_view kLetters =
    "b c d e f g h i j k l m n o p q r s t u v w x y z";
constexpr absl::string_view kTaskWords = "copy trace add count";
constexpr absl::string_view kNames =
    "Tom Anna Ben Clara Dan Ella Finn Grace Hugo Iris Jack Kate Leo Mia Nick "
    "Nora "
    "Oscar Paula Ralf Rosa Sam Sarah Theo Tina Udo Vera Walter Wilma Xaver "
    "Yara Zeno Zoe";
constexpr absl::string_view kJobs =
    "baker farmer sailor teacher doctor painter miller singer hunter weaver "
    "tailor smith "
    "gardener potter mason cook nurse driver clerk judge";
constexpr absl::string_view kVerbs =
    "saw found lost took sold bought hid carried painted dropped wanted liked "
    "moved opened kept broke "
    "cleaned fixed borrowed lent stole guarded buried lifted pushed pulled "
    "washed wrapped counted drew tested forgot";
constexpr absl::string_view kObjects =
    "apple lamp book box ring coat boat cup drum egg fish hat jar key map net "
    "pot rope shoe table vase wheel bell coin "
    "knife letter mirror needle pipe plate sack shovel spoon stick stone sword "
    "violin wagon whistle window";
constexpr absl::string_view kAdjectives =
    "red blue green old new small big dark bright heavy broken golden silver "
    "quiet round empty "
    "black white yellow brown clean dirty warm cold soft hard long short thin "
    "thick wet dry";
constexpr absl::string_view kPlaces =
    "market forest river house garden bridge tower field school harbour "
    "kitchen barn "
    "castle cellar church desert island library meadow mill mountain park "
    "station valley";
constexpr absl::string_view kSmallWords =
    "the a in near of and then it was to went came with from at he she but "
    "never very had so this that his her "
    "who where first later again every day one still there both many";

std::vector<std::string> BuildVocabulary() {
  std::vector<std::string> texts;
  for (int byte = 0; byte < 256; ++byte)
    texts.push_back(std::string(1, static_cast<char>(byte)));
  texts.resize(kFirstWord);
  for (absl::string_view list :
       {kPunctuation, kLetters, kTaskWords, kNames, kJobs, kVerbs, kObjects,
        kAdjectives, kPlaces, kSmallWords}) {
    for (absl::string_view word : absl::StrSplit(list, ' '))
      texts.push_back(absl::StrCat(" ", word));
  }
  return texts;
}

std::vector<int> Bytes(absl::string_view bytes) {
  return std::vector<int>(bytes.begin(), bytes.end());
}

Alphabets MakeAlphabets() {
  Alphabets s;
  s.names = Words(kNames);
  s.jobs = Words(kJobs);
  s.verbs = Words(kVerbs);
  s.objects = Words(kObjects);
  s.adjectives = Words(kAdjectives);
  s.places = Words(kPlaces);
  s.digits = Bytes("0123456789");
  s.hex = Bytes("0123456789abcdef");
  s.alphanumeric = Bytes("0123456789abcdefghijklmnopqrstuvwxyz");
  for (const std::vector<int>& words :
       {s.names, s.jobs, s.verbs, s.objects, s.adjectives, s.places}) {
    s.content_words.insert(s.content_words.end(), words.begin(), words.end());
  }
  s.value_letters = Words("g h i j k l m n o p q r s t u v w x y z");
  s.constant_letters = Words("b c d e f");
  s.semicolon = Word(";");
  s.ask = Word("?");
  s.colon = Word(":");
  s.equals = Word("=");
  s.hash = Word("#");
  s.copy = Word("copy");
  s.trace = Word("trace");
  s.add = Word("add");
  s.count = Word("count");
  s.he = Word("he");
  s.she = Word("she");
  return s;
}

}  // namespace

const std::vector<std::string>& Vocabulary() {
  static const auto* const vocabulary =
      new std::vector<std::string>(BuildVocabulary());
  return *vocabulary;
}

// The id of a word, given without its leading space.
int Word(absl::string_view word) {
  static const auto* const ids = [] {
    auto* map = new std::map<std::string, int, std::less<>>;
    for (int id = kFirstWord; id < kSyntheticVocabularySize; ++id)
      map->emplace(Vocabulary()[id].substr(1), id);
    return map;
  }();
  return ids->find(word)->second;
}

std::vector<int> Words(absl::string_view list) {
  std::vector<int> ids;
  for (absl::string_view word : absl::StrSplit(list, ' '))
    ids.push_back(Word(word));
  return ids;
}

const Alphabets& Symbols() {
  static const auto* const alphabets = new Alphabets(MakeAlphabets());
  return *alphabets;
}

}  // namespace kvmix::synthetic
