#include "experiments/synthetic/synthetic_text.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kvmix/base/random.h"

namespace kvmix {
namespace {

// ----------------------------------------------------------------------------------------------------
// vocabulary

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

std::vector<int> Bytes(absl::string_view bytes) {
  return std::vector<int>(bytes.begin(), bytes.end());
}

std::vector<int> Concatenate(std::vector<int> a, const std::vector<int>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// What the tasks draw from. One object, built once.
struct Alphabets {
  std::vector<int> names = Words(kNames);
  std::vector<int> jobs = Words(kJobs);
  std::vector<int> verbs = Words(kVerbs);
  std::vector<int> objects = Words(kObjects);
  std::vector<int> adjectives = Words(kAdjectives);
  std::vector<int> places = Words(kPlaces);
  std::vector<int> digits = Bytes("0123456789");
  std::vector<int> hex = Bytes("0123456789abcdef");
  std::vector<int> alphanumeric =
      Concatenate(hex, Bytes("ghijklmnopqrstuvwxyz"));
  std::vector<int> content_words = Concatenate(
      names,
      Concatenate(
          jobs, Concatenate(verbs, Concatenate(objects, Concatenate(adjectives,
                                                                    places)))));
  // The first letters of recalled values and of variables, and of a variable's
  // value: disjoint, so that the form of an answer tells whether the trace is
  // at its end.
  std::vector<int> value_letters =
      Words("g h i j k l m n o p q r s t u v w x y z");
  std::vector<int> constant_letters = Words("b c d e f");
  int period = Word("."), semicolon = Word(";"), ask = Word("?"),
      colon = Word(":"), equals = Word("=");
  int hash = Word("#"), copy = Word("copy"), trace = Word("trace"),
      add = Word("add"), count = Word("count");
  int he = Word("he"), she = Word("she");
};

const Alphabets& Symbols() {
  static const auto* const alphabets = new Alphabets;
  return *alphabets;
}

// -------------------------------------------------------------------------------------------------------
// drawing

int UniformInt(CounterRandom& random, int low, int high) {
  return low +
         static_cast<int>(random.Below(static_cast<uint64_t>(high - low + 1)));
}

template <typename T>
const T& Pick(CounterRandom& random, const std::vector<T>& from) {
  return from[random.Below(from.size())];
}

using Weights = std::array<double, 3>;

// An index with probability proportional to its weight.
size_t PickWeighted(CounterRandom& random, absl::Span<const double> weights) {
  double total = 0;
  for (double weight : weights) total += weight;
  double left = random.Uniform() * total;
  for (size_t i = 0; i + 1 < weights.size(); ++i) {
    left -= weights[i];
    if (left < 0) return i;
  }
  return weights.size() - 1;
}

template <typename T>
void Shuffle(CounterRandom& random, std::vector<T>& items) {
  for (size_t i = items.size(); i > 1; --i)
    std::swap(items[i - 1], items[random.Below(i)]);
}

using Key = std::vector<int>;

// `count` different keys; a base key gets up to three siblings with probability
// `confusable`. Precondition: count is at most half of the number of keys that
// exist.
std::vector<Key> DrawKeys(CounterRandom& random, int count, double confusable,
                          int length, const std::vector<int>& alphabet) {
  std::set<Key> drawn;
  std::vector<Key> keys;
  auto add = [&](const Key& key) {
    if (static_cast<int>(keys.size()) < count && drawn.insert(key).second)
      keys.push_back(key);
  };
  while (static_cast<int>(keys.size()) < count) {
    Key base(length);
    for (int& symbol : base) symbol = Pick(random, alphabet);
    add(base);
    if (random.Uniform() >= confusable) continue;
    for (int i = 0; i < 3; ++i) {
      Key sibling = base;
      sibling[random.Below(length)] = Pick(random, alphabet);
      add(sibling);
    }
  }
  Shuffle(random, keys);
  return keys;
}

// ------------------------------------------------------------------------------------------------------
// document

class DocumentBuilder {
 public:
  explicit DocumentBuilder(SyntheticTask task) { document_.task = task; }

  void Add(int id, TokenClass token_class) {
    document_.text += Vocabulary()[id];
    document_.token_ids.push_back(id);
    document_.classes.push_back(token_class);
  }
  void Add(const std::vector<int>& ids, TokenClass token_class) {
    for (int id : ids) Add(id, token_class);
  }

  void BeginQuestion() {
    question_ = size();
    question_byte_ = bytes();
  }

  // Adds an answer to the question begun last. Structure tokens inside it count
  // for the score, not for the loss.
  void AddAnswer(const std::vector<int>& ids) {
    Answer answer = {question_byte_, bytes(), 0,
                     question_,      size(),  static_cast<int>(ids.size())};
    for (size_t i = 0; i < ids.size(); ++i) {
      Add(ids[i], i == 0                       ? TokenClass::kAnswerFirst
                  : ids[i] == Symbols().equals ? TokenClass::kStructure
                                               : TokenClass::kAnswer);
    }
    answer.length = bytes() - answer.begin;
    document_.answers.push_back(answer);
  }

  int size() const { return static_cast<int>(document_.token_ids.size()); }

  // Cuts the document to `tokens` tokens; answers that are cut are dropped.
  void Truncate(int tokens) {
    for (; size() > tokens;
         document_.token_ids.pop_back(), document_.classes.pop_back()) {
      document_.text.resize(document_.text.size() -
                            Vocabulary()[document_.token_ids.back()].size());
    }
    auto& answers = document_.answers;
    while (!answers.empty() &&
           answers.back().begin_token + answers.back().token_count > tokens)
      answers.pop_back();
  }

  void EndContext() {
    document_.context_bytes = bytes();
    document_.context_tokens = size();
  }

  SyntheticDocument Finish() { return std::move(document_); }

 private:
  int bytes() const { return static_cast<int>(document_.text.size()); }

  SyntheticDocument document_ = {};
  int question_ = 0;
  int question_byte_ = 0;
};

// ---------------------------------------------------------------------------------------------------------
// story

// Sentences about people whose job, possession and place stay the same through
// the document.
class Story {
 public:
  std::vector<int> Sentence(CounterRandom& random) {
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

 private:
  struct Person {
    int job, adjective, object, place;
  };

  // Capitals are fixed for the person, small letters are drawn anew.
  static const std::vector<std::vector<absl::string_view>>& Patterns() {
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

  static bool IsMan(int who) {
    static const auto* const men = new std::set<int>{
        Word("Tom"),   Word("Ben"),    Word("Dan"),   Word("Finn"),
        Word("Hugo"),  Word("Jack"),   Word("Leo"),   Word("Nick"),
        Word("Oscar"), Word("Ralf"),   Word("Sam"),   Word("Theo"),
        Word("Udo"),   Word("Walter"), Word("Xaver"), Word("Zeno")};
    return men->contains(Symbols().names[who]);
  }

  std::map<int, Person> people_;
};

// ---------------------------------------------------------------------------------------------------------
// tasks

// Facts of one document and questions about them. A subject is what a question
// asks about: a record, a string, a variable, a kind of thing.
class Exercise {
 public:
  virtual ~Exercise() = default;
  virtual int num_facts() const = 0;
  virtual int FactTokens(int fact) const = 0;
  // Adds a fact; they are stated in order. Returns the subject that can be
  // asked about from now on.
  virtual int State(int fact, DocumentBuilder& document) = 0;
  virtual bool WorthAsking(int /*subject*/) const { return true; }
  // Whether a question asked again is still worth learning from.
  virtual bool WorthRepeating() const { return true; }
  virtual void Ask(int subject, CounterRandom& random,
                   DocumentBuilder& document) const = 0;
};

// What a training document draws for itself, and an evaluation document takes
// from the options.
struct KeyShape {
  int length;
  const std::vector<int>* alphabet;
};

KeyShape DrawKeyShape(const SyntheticTextOptions& options,
                      CounterRandom& random) {
  const Alphabets& s = Symbols();
  if (options.layout == Layout::kQuestionsLast) return {3, &s.hex};
  const double hard = options.difficulty;
  const int length =
      1 +
      static_cast<int>(PickWeighted(
          random, {0.5 - 0.45 * hard, 0.3 - 0.1 * hard, 0.2 + 0.55 * hard}));
  const std::array<const std::vector<int>*, 3> alphabets = {
      &s.hex, &s.alphanumeric, &s.content_words};
  return {length, alphabets[PickWeighted(random, Weights{1 + hard, 1, 1})]};
}

// The number of facts of `fact_tokens` tokens each; half of a training document
// is left to questions.
int DrawNumFacts(const SyntheticTextOptions& options, int fact_tokens,
                 CounterRandom& random) {
  if (options.layout == Layout::kQuestionsLast) return options.facts;
  return UniformInt(
      random, 2,
      std::max(2, std::min(options.facts,
                           (options.tokens - 24) / (2 * fact_tokens))));
}

class Recall final : public Exercise {
 public:
  Recall(const SyntheticTextOptions& options, CounterRandom& random) {
    const KeyShape shape = DrawKeyShape(options, random);
    int count = DrawNumFacts(options, 4 + shape.length, random);
    const double exist =
        std::pow(static_cast<double>(shape.alphabet->size()), shape.length);
    count = static_cast<int>(std::min<double>(count, exist / 2));
    keys_ = DrawKeys(random, count, options.confusable, shape.length,
                     *shape.alphabet);
    for (int i = 0; i < count; ++i) {
      values_.push_back({Pick(random, Symbols().value_letters),
                         Pick(random, Symbols().digits)});
    }
  }

  int num_facts() const override { return static_cast<int>(keys_.size()); }
  int FactTokens(int fact) const override {
    return 4 + static_cast<int>(keys_[fact].size());
  }

  int State(int fact, DocumentBuilder& document) override {
    document.Add(Symbols().hash, TokenClass::kRandom);
    document.Add(keys_[fact], TokenClass::kRandom);
    document.Add(values_[fact], TokenClass::kRandom);
    document.Add(Symbols().semicolon, TokenClass::kStructure);
    return fact;
  }

  void Ask(int subject, CounterRandom&,
           DocumentBuilder& document) const override {
    document.BeginQuestion();
    document.Add(Symbols().ask, TokenClass::kStructure);
    document.Add(Symbols().hash, TokenClass::kStructure);
    document.Add(keys_[subject], TokenClass::kQuestionKey);
    document.AddAnswer(values_[subject]);
    document.Add(Symbols().semicolon, TokenClass::kStructure);
  }

 private:
  std::vector<Key> keys_;
  std::vector<std::vector<int>> values_;
};

class Copy final : public Exercise {
 public:
  Copy(const SyntheticTextOptions& options, CounterRandom& random) {
    const Alphabets& s = Symbols();
    const std::array<const std::vector<int>*, 3> alphabets = {
        &s.hex, &s.alphanumeric, &s.content_words};
    const bool training = options.layout == Layout::kTraining;
    const std::vector<int>& alphabet =
        training ? *alphabets[random.Below(3)] : s.hex;
    const int longest = std::clamp((options.tokens - 24) / 4 - 3, kCue + 1, 24);
    const int length =
        training ? UniformInt(random, kCue + 1, longest) : options.copy_length;
    const int count = DrawNumFacts(options, 3 + length, random);
    strings_ = DrawKeys(random, count, options.confusable, kCue, alphabet);
    for (Key& string : strings_) {
      while (static_cast<int>(string.size()) < length)
        string.push_back(Pick(random, alphabet));
    }
  }

  int num_facts() const override { return static_cast<int>(strings_.size()); }
  int FactTokens(int fact) const override {
    return 3 + static_cast<int>(strings_[fact].size());
  }

  int State(int fact, DocumentBuilder& document) override {
    document.Add(Symbols().copy, TokenClass::kRandom);
    document.Add(Symbols().colon, TokenClass::kStructure);
    document.Add(strings_[fact], TokenClass::kRandom);
    document.Add(Symbols().semicolon, TokenClass::kStructure);
    return fact;
  }

  void Ask(int subject, CounterRandom&,
           DocumentBuilder& document) const override {
    const Key& string = strings_[subject];
    document.BeginQuestion();
    document.Add(Symbols().copy, TokenClass::kStructure);
    document.Add(Symbols().colon, TokenClass::kStructure);
    document.Add(Key(string.begin(), string.begin() + kCue),
                 TokenClass::kQuestionKey);
    document.AddAnswer(Key(string.begin() + kCue, string.end()));
    document.Add(Symbols().semicolon, TokenClass::kStructure);
  }

  static constexpr int kCue = 3;  // symbols given in a question

 private:
  std::vector<Key> strings_;
};

class Hop final : public Exercise {
 public:
  Hop(const SyntheticTextOptions& options, CounterRandom& random)
      : options_(options) {
    const Alphabets& s = Symbols();
    for (int letter : s.value_letters) {
      for (int digit : s.digits) names_.push_back({letter, digit});
    }
    Shuffle(random, names_);
    const int count = DrawNumFacts(options, kFactTokens, random);
    const int deepest = options.layout == Layout::kTraining
                            ? UniformInt(random, 1, options.hops)
                            : options.hops;
    // Depths 0, 1, .., deepest, 0, 1, .. so that every variable refers to one
    // that is already there.
    for (int i = 0; i < count; ++i) {
      const int depth = i % (deepest + 1);
      Key source;
      int refers_to = kConstant;
      if (depth == 0) {
        source = {Pick(random, s.constant_letters), Pick(random, s.digits)};
      } else {
        refers_to = depth - 1 +
                    (deepest + 1) * UniformInt(random, 0, i / (deepest + 1));
        source = names_[refers_to];
      }
      variables_.push_back({depth, refers_to, source});
    }
    deepest_ = std::min(deepest, count - 1);
  }

  int num_facts() const override { return static_cast<int>(variables_.size()); }
  int FactTokens(int /*fact*/) const override { return kFactTokens; }

  int State(int fact, DocumentBuilder& document) override {
    document.Add(names_[fact], TokenClass::kRandom);
    document.Add(Symbols().equals, TokenClass::kStructure);
    document.Add(variables_[fact].source, TokenClass::kRandom);
    document.Add(Symbols().semicolon, TokenClass::kStructure);
    return fact;
  }

  // Evaluation asks only about the deepest variables.
  bool WorthAsking(int subject) const override {
    return options_.layout == Layout::kTraining ||
           variables_[subject].depth == deepest_;
  }

  void Ask(int subject, CounterRandom& random,
           DocumentBuilder& document) const override {
    const Alphabets& s = Symbols();
    const bool direct = options_.layout == Layout::kTraining
                            ? random.Uniform() < kDirectShare
                            : options_.hop_form == HopForm::kDirect;
    document.BeginQuestion();
    document.Add(direct ? s.ask : s.trace, TokenClass::kStructure);
    document.Add(names_[subject], TokenClass::kQuestionKey);
    document.Add(s.equals, TokenClass::kStructure);
    std::vector<int> answer;
    for (int variable = subject; variable != kConstant;
         variable = variables_[variable].refers_to) {
      const bool last = variables_[variable].refers_to == kConstant;
      if (direct && !last) continue;
      if (!answer.empty()) answer.push_back(s.equals);
      answer = Concatenate(answer, variables_[variable].source);
    }
    document.AddAnswer(answer);
    document.Add(s.semicolon, TokenClass::kStructure);
  }

 private:
  static constexpr int kFactTokens = 6;
  static constexpr int kConstant = -1;
  static constexpr double kDirectShare = 0.3;

  struct Variable {
    int depth;
    int refers_to;  // a variable, or kConstant
    Key source;     // the right-hand side
  };
  SyntheticTextOptions options_;
  std::vector<Key> names_;
  std::vector<Variable> variables_;
  int deepest_;
};

class Count final : public Exercise {
 public:
  Count(const SyntheticTextOptions& options, CounterRandom& random)
      : so_far_(Symbols().objects.size(), 0) {
    const bool training = options.layout == Layout::kTraining;
    const int count =
        training ? UniformInt(random, 2,
                              std::min(kMostFacts, (options.tokens - 24) / 5))
                 : options.facts;
    std::vector<int> kinds(Symbols().objects.size());
    for (size_t i = 0; i < kinds.size(); ++i) kinds[i] = static_cast<int>(i);
    Shuffle(random, kinds);
    const int fewest = NumKinds(count);
    const int most = std::min(static_cast<int>(kinds.size()), count);
    kinds.resize(training ? UniformInt(random, fewest, most) : fewest);
    std::vector<int> left(so_far_.size(), kLargestCount);
    while (static_cast<int>(added_.size()) < count) {
      const int kind = Pick(random, kinds);
      if (left[kind]-- > 0) added_.push_back(kind);
    }
  }

  // The fewest kinds that `count` additions need, with a fourth to spare.
  static int NumKinds(int count) { return 1 + count / 7; }

  int num_facts() const override { return static_cast<int>(added_.size()); }
  int FactTokens(int /*fact*/) const override { return kFactTokens; }

  bool WorthRepeating() const override { return false; }

  int State(int fact, DocumentBuilder& document) override {
    document.Add(Symbols().add, TokenClass::kRandom);
    document.Add(Symbols().objects[added_[fact]], TokenClass::kRandom);
    document.Add(Symbols().semicolon, TokenClass::kStructure);
    ++so_far_[added_[fact]];
    return added_[fact];
  }

  void Ask(int subject, CounterRandom&,
           DocumentBuilder& document) const override {
    document.BeginQuestion();
    document.Add(Symbols().count, TokenClass::kStructure);
    document.Add(Symbols().objects[subject], TokenClass::kQuestionKey);
    document.AddAnswer({'0' + so_far_[subject]});
    document.Add(Symbols().semicolon, TokenClass::kStructure);
  }

 private:
  static constexpr int kFactTokens = 3;
  static constexpr int kLargestCount = 9;
  static constexpr int kMostFacts = 270;

  std::vector<int> added_;   // the kind of each addition
  std::vector<int> so_far_;  // additions of each kind stated
};

class NoExercise final : public Exercise {
 public:
  int num_facts() const override { return 0; }
  int FactTokens(int /*fact*/) const override { return 0; }
  int State(int fact, DocumentBuilder& /*document*/) override { return fact; }
  void Ask(int /*subject*/, CounterRandom&,
           DocumentBuilder& /*document*/) const override {}
};

std::unique_ptr<Exercise> MakeExercise(SyntheticTask task,
                                       const SyntheticTextOptions& options,
                                       CounterRandom& random) {
  switch (task) {
    case SyntheticTask::kRecall:
      return std::make_unique<Recall>(options, random);
    case SyntheticTask::kCopy:
      return std::make_unique<Copy>(options, random);
    case SyntheticTask::kHop:
      return std::make_unique<Hop>(options, random);
    case SyntheticTask::kCount:
      return std::make_unique<Count>(options, random);
    case SyntheticTask::kStory:
    case SyntheticTask::kMixture:
      break;
  }
  return std::make_unique<NoExercise>();
}

// -------------------------------------------------------------------------------------------------------
// layouts

// Facts in exactly `tokens` tokens: each sentence of the story goes before a
// fact drawn at random, or after them all.
std::vector<int> WriteContext(Exercise& exercise, int tokens,
                              CounterRandom& random,
                              DocumentBuilder& document) {
  const int facts = exercise.num_facts();
  int room = tokens;
  for (int i = 0; i < facts; ++i) room -= exercise.FactTokens(i);
  Story story;
  std::vector<std::vector<int>> before(facts + 1);
  while (room > 0) {
    std::vector<int> sentence = story.Sentence(random);
    if (static_cast<int>(sentence.size()) > room) sentence.resize(room);
    std::vector<int>& gap = before[random.Below(before.size())];
    gap.insert(gap.end(), sentence.begin(), sentence.end());
    room -= static_cast<int>(sentence.size());
  }
  std::set<int> subjects;
  for (int i = 0; i < facts; ++i) {
    document.Add(before[i], TokenClass::kStory);
    subjects.insert(exercise.State(i, document));
  }
  document.Add(before[facts], TokenClass::kStory);
  document.EndContext();
  return std::vector<int>(subjects.begin(), subjects.end());
}

absl::StatusOr<SyntheticDocument> WriteQuestionsLast(
    SyntheticTask task, const SyntheticTextOptions& options,
    CounterRandom& random) {
  const std::unique_ptr<Exercise> exercise =
      MakeExercise(task, options, random);
  int needed = 0;
  for (int i = 0; i < exercise->num_facts(); ++i)
    needed += exercise->FactTokens(i);
  if (needed > options.tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokens is ", options.tokens, " but ", options.facts, " facts take ",
        needed, "; use more tokens or fewer facts"));
  }
  DocumentBuilder document(task);
  std::vector<int> subjects =
      WriteContext(*exercise, options.tokens, random, document);
  std::erase_if(subjects,
                [&](int subject) { return !exercise->WorthAsking(subject); });
  if (task == SyntheticTask::kStory) return document.Finish();
  if (static_cast<int>(subjects.size()) < options.questions) {
    return absl::InvalidArgumentError(absl::StrCat(
        "questions is ", options.questions, " but ", options.facts,
        " facts of this task give ", subjects.size(),
        " things to ask about; use more facts or fewer questions"));
  }
  Shuffle(random, subjects);
  for (int i = 0; i < options.questions; ++i)
    exercise->Ask(subjects[i], random, document);
  return document.Finish();
}

SyntheticDocument WriteTraining(SyntheticTask task,
                                const SyntheticTextOptions& options,
                                CounterRandom& random) {
  const std::unique_ptr<Exercise> exercise =
      MakeExercise(task, options, random);
  DocumentBuilder document(task);
  Story story;
  auto tell = [&](double tokens) {
    while (tokens > 0) {
      if (tokens < 12 && random.Uniform() > tokens / 12) break;
      const std::vector<int> sentence = story.Sentence(random);
      document.Add(sentence, TokenClass::kStory);
      tokens -= static_cast<double>(sentence.size());
    }
  };
  const int facts = exercise->num_facts();
  if (facts == 0) tell(options.tokens + 12);
  double room = options.tokens - 45;
  for (int i = 0; i < facts; ++i) room -= exercise->FactTokens(i) + 1;
  const double gap = Pick(random, std::vector<double>{0, 0, 0.3, 0.6, 0.8}) *
                     std::max(0.0, room) / std::max(1, facts);
  const bool ask_early = random.Uniform() < 0.5;
  const bool tell_late = random.Uniform() < 0.2;
  std::vector<int> subjects;
  for (int i = 0; i < facts; ++i) {
    tell(gap * (0.3 + 1.4 * random.Uniform()));
    const int subject = exercise->State(i, document);
    if (std::find(subjects.begin(), subjects.end(), subject) == subjects.end())
      subjects.push_back(subject);
    if (ask_early && random.Uniform() < 0.3)
      exercise->Ask(Pick(random, subjects), random, document);
  }
  // Every subject once in a random order, then again in another.
  for (bool first = true; document.size() < options.tokens; first = false) {
    Shuffle(random, subjects);
    if (!first && !exercise->WorthRepeating()) tell(options.tokens + 12);
    for (size_t i = 0; i < subjects.size() && document.size() < options.tokens;
         ++i) {
      exercise->Ask(subjects[i], random, document);
      if (tell_late) tell(static_cast<double>(random.Below(20)));
    }
  }
  document.Truncate(options.tokens);
  document.EndContext();
  return document.Finish();
}

absl::Status Validate(SyntheticTask task, const SyntheticTextOptions& options) {
  auto range = [](absl::string_view name, double value, double low,
                  double high) {
    if (value >= low && value <= high) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        name, " is ", value, " but must be in [", low, ", ", high, "]"));
  };
  // 2,048 is half of the three-digit keys; a variable is one of 200 names; nine
  // additions of 40 kinds.
  const int most_facts = task == SyntheticTask::kHop     ? 200
                         : task == SyntheticTask::kCount ? 270
                                                         : 2048;
  for (absl::Status status :
       {range("tokens", options.tokens, 48, 1 << 20),
        range("facts", options.facts, 2, most_facts),
        range("questions", options.questions, 0, 1 << 20),
        range("confusable", options.confusable, 0, 1),
        range("difficulty", options.difficulty, 0, 1),
        range("hops", options.hops, 0, 16),
        range("copy_length", options.copy_length, Copy::kCue + 1, 1024)}) {
    if (!status.ok()) return status;
  }
  for (double weight : options.mixture) {
    if (absl::Status status = range("mixture", weight, 0, 1e9); !status.ok())
      return status;
  }
  if (options.layout == Layout::kTraining && options.hops < 1) {
    return absl::InvalidArgumentError(
        "hops is 0 but must be at least 1 for training");
  }
  return absl::OkStatus();
}

}  // namespace

absl::string_view SyntheticTokenText(int id) { return Vocabulary()[id]; }

absl::StatusOr<SyntheticTask> ParseSyntheticTask(absl::string_view name) {
  static constexpr std::array<std::pair<absl::string_view, SyntheticTask>, 6>
      kTasks = {{{"recall", SyntheticTask::kRecall},
                 {"copy", SyntheticTask::kCopy},
                 {"hop", SyntheticTask::kHop},
                 {"count", SyntheticTask::kCount},
                 {"story", SyntheticTask::kStory},
                 {"mixture", SyntheticTask::kMixture}}};
  for (const auto& [known, task] : kTasks) {
    if (known == name) return task;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "task \"", name,
      "\" is unknown; known: recall, copy, hop, count, story, mixture"));
}

absl::StatusOr<SyntheticDocument> GenerateSyntheticDocument(
    SyntheticTask task, const SyntheticTextOptions& options, uint64_t seed,
    uint64_t index) {
  if (absl::Status status = Validate(task, options); !status.ok())
    return status;
  CounterRandom random(seed, index);
  if (task == SyntheticTask::kMixture) {
    static constexpr std::array<SyntheticTask, 5> kTasks = {
        SyntheticTask::kRecall, SyntheticTask::kCopy, SyntheticTask::kHop,
        SyntheticTask::kCount, SyntheticTask::kStory};
    task = kTasks[PickWeighted(random, options.mixture)];
  }
  if (absl::Status status = Validate(task, options); !status.ok())
    return status;
  if (options.layout == Layout::kQuestionsLast)
    return WriteQuestionsLast(task, options, random);
  return WriteTraining(task, options, random);
}

}  // namespace kvmix
