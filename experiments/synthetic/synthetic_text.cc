#include "experiments/synthetic/synthetic_text.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <memory>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "experiments/synthetic/document_builder.h"
#include "experiments/synthetic/draw.h"
#include "experiments/synthetic/exercise.h"
#include "experiments/synthetic/story.h"
#include "experiments/synthetic/vocabulary.h"
#include "kvmix/base/random.h"
#include "kvmix/base/status_macros.h"

namespace kvmix {
namespace synthetic {
namespace {

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

// Subjects are numbered in the order in which they are stated.
int SubjectAt(double depth, std::vector<int> subjects) {
  std::sort(subjects.begin(), subjects.end());
  return subjects[std::lround(depth *
                              static_cast<double>(subjects.size() - 1))];
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
  if (options.depth >= 0 && options.questions == 1)
    subjects = {SubjectAt(options.depth, subjects)};
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
  for (absl::Status status :
       {range("tokens", options.tokens, 48, 1 << 20),
        range("facts", options.facts, 2, MostFacts(task)),
        range("questions", options.questions, 0, 1 << 20),
        range("confusable", options.confusable, 0, 1),
        range("difficulty", options.difficulty, 0, 1),
        range("depth", options.depth, -1, 1),
        range("hops", options.hops, 0, 16),
        range("copy_length", options.copy_length, kCopyCue + 1, 1024)}) {
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
}  // namespace synthetic

absl::string_view SyntheticTokenText(int id) {
  return synthetic::Vocabulary()[id];
}

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
  KVMIX_RETURN_IF_ERROR(synthetic::Validate(task, options));
  CounterRandom random(seed, index);
  if (task == SyntheticTask::kMixture) {
    static constexpr std::array<SyntheticTask, 5> kTasks = {
        SyntheticTask::kRecall, SyntheticTask::kCopy, SyntheticTask::kHop,
        SyntheticTask::kCount, SyntheticTask::kStory};
    task = kTasks[synthetic::PickWeighted(random, options.mixture)];
  }
  if (options.layout == Layout::kQuestionsLast)
    return synthetic::WriteQuestionsLast(task, options, random);
  return synthetic::WriteTraining(task, options, random);
}

}  // namespace kvmix
