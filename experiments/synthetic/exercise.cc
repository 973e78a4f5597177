#include "experiments/synthetic/exercise.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <set>
#include <vector>

#include "experiments/synthetic/draw.h"
#include "experiments/synthetic/vocabulary.h"

namespace kvmix::synthetic {
namespace {

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
  return {length, alphabets[PickWeighted(random, {1 + hard, 1, 1})]};
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
    const int longest =
        std::clamp((options.tokens - 24) / 4 - 3, kCopyCue + 1, 24);
    const int length = training ? UniformInt(random, kCopyCue + 1, longest)
                                : options.copy_length;
    const int count = DrawNumFacts(options, 3 + length, random);
    strings_ = DrawKeys(random, count, options.confusable, kCopyCue, alphabet);
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
    document.Add(Key(string.begin(), string.begin() + kCopyCue),
                 TokenClass::kQuestionKey);
    document.AddAnswer(Key(string.begin() + kCopyCue, string.end()));
    document.Add(Symbols().semicolon, TokenClass::kStructure);
  }

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
      const Key& source = variables_[variable].source;
      answer.insert(answer.end(), source.begin(), source.end());
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
                              std::min(MostFacts(SyntheticTask::kCount),
                                       (options.tokens - 24) / 5))
                 : options.facts;
    std::vector<int> kinds(Symbols().objects.size());
    for (size_t i = 0; i < kinds.size(); ++i) kinds[i] = static_cast<int>(i);
    Shuffle(random, kinds);
    // A kind can be added nine times, so a seventh of the additions are kinds
    // enough. Evaluation takes a fourth: counts spread around three or four.
    const int most = std::min(static_cast<int>(kinds.size()), count);
    kinds.resize(training ? UniformInt(random, 1 + count / 7, most)
                          : std::min(1 + count / 4, most));
    std::vector<int> left(so_far_.size(), kLargestCount);
    while (static_cast<int>(added_.size()) < count) {
      const int kind = Pick(random, kinds);
      if (left[kind]-- > 0) added_.push_back(kind);
    }
  }

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

}  // namespace

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

int MostFacts(SyntheticTask task) {
  switch (task) {
    case SyntheticTask::kCount:
      return 270;  // nine additions of 40 kinds, with some to spare
    case SyntheticTask::kHop:
    case SyntheticTask::kMixture:
      return 200;  // the names of variables
    default:
      return 2048;  // half of the three-digit keys
  }
}

}  // namespace kvmix::synthetic
