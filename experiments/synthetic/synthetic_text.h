// Seeded synthetic text: the training data of the embedded model and the
// contexts of the synthetic tasks.
//
// A document is a pure function of (task, options, seed, index). It is made of
// *pieces*, and every piece is exactly one token of the embedded model's
// tokenizer: a single byte, or a whole word with its leading space. So the
// generator counts tokens without a tokenizer, and the tokenizer gives back
// exactly Document::token_ids.
//
// Every task states facts between sentences of a story and asks about them:
//   task    facts                   question            answer
//   RECALL  " #7f3 q5 ;"            " ? #7f3"           " q5"
//   COPY    " copy :7f3a90b2 ;"     " copy :7f3"        "a90b2"
//   HOP     " x7 = b5 ;"            " trace y2 ="       " x7 = b5"
//           " y2 = x7 ;"            " ? y2 ="           " b5"   (kDirect)
//   COUNT   " add apple ;" (often)  " count apple"      "3"     (1 to 9)
//   STORY   none: sentences alone, in which a person's job, possession and
//           place stay the same
// An answer is followed by " ;".
//
// Keys are confusable when they come in families: a base key and up to three
// siblings that differ from it in exactly one of three hexadecimal digits.
// Copied strings have such families in their first three symbols.
//
// Two layouts:
//   kQuestionsLast: a context of exactly `tokens` tokens, then `questions`
//     questions with their answers. Score them one after another, or each alone
//     after the context (Answer::question is where it starts).
//   kTraining: exactly `tokens` tokens, cut where they end. Difficulty is drawn
//     per document; questions stand also between the facts and then fill the
//     rest, so that most of the loss is on answers.
// Neither contains the beginning-of-sequence token: put kBeginOfSequence in
// front.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvmix {

// Token ids: 0 to 255 are bytes, then the two special tokens, then the words.
inline constexpr int kBeginOfSequence = 256;  // <s>
inline constexpr int kEndOfSequence = 257;    // </s>; never generated
inline constexpr int kFirstWord = 258;
inline constexpr int kSyntheticVocabularySize = 512;

// The text of a token; empty for the special tokens. Precondition: 0 <= id <
// kSyntheticVocabularySize.
absl::string_view SyntheticTokenText(int id);

// kMixture draws one of the others for each document.
enum class SyntheticTask { kRecall, kCopy, kHop, kCount, kStory, kMixture };

// Parses "recall", "copy", "hop", "count", "story" or "mixture".
absl::StatusOr<SyntheticTask> ParseSyntheticTask(absl::string_view name);

enum class Layout { kQuestionsLast, kTraining };

enum class HopForm { kTrace, kDirect };

struct SyntheticTextOptions {
  Layout layout = Layout::kQuestionsLast;

  // Length of the context (kQuestionsLast) or of the document (kTraining).
  int tokens = 2048;

  // Facts in the context: records, strings, assignments, additions. Under
  // kTraining the most there can be.
  int facts = 32;

  // Questions after the context, about different facts. Only kQuestionsLast.
  int questions = 16;

  // Probability that a base key gets siblings, in [0, 1].
  double confusable = 1.0;

  // COPY: symbols of a string; the first three are given in the question. Only
  // kQuestionsLast.
  int copy_length = 12;

  // HOP: assignments between the variable asked about and its value. Under
  // kTraining the most there can be.
  int hops = 2;

  // Only kQuestionsLast: with one question, which subject it asks about, by the
  // order in which they are stated: 0 the first, 1 the last. Below 0: any.
  double depth = -1;

  // HOP: the form of the questions. Only kQuestionsLast; kTraining mixes both.
  HopForm hop_form = HopForm::kTrace;

  // kMixture: the relative frequency of recall, copy, hop, count, story.
  std::array<double, 5> mixture = {0.62, 0.08, 0.16, 0.08, 0.06};

  // kTraining: 0 draws mostly one-symbol keys, 1 mostly three-symbol keys;
  // between, a mixture.
  double difficulty = 1.0;
};

// How predictable a token is, for the loss weights of training.
enum class TokenClass : uint8_t {
  kRandom = 0,       // drawn at random here: keys and values of facts
  kStructure = 1,    // punctuation of facts and questions
  kStory = 2,        // words of the story
  kQuestionKey = 3,  // a key in a question: only its later symbols are (partly)
                     // predictable
  kAnswer = 4,       // an answer after its first token
  kAnswerFirst = 5,  // the first token of an answer: cannot be guessed from the
                     // answer itself
};

struct Answer {
  int question;  // byte offset in the text at which the question starts
  int begin;     // byte offset of the answer
  int length;    // bytes

  int question_token;  // the same in tokens
  int begin_token;
  int token_count;
};

struct SyntheticDocument {
  SyntheticTask task;  // never kMixture
  std::string text;
  std::vector<int> token_ids;
  std::vector<TokenClass> classes;  // one for each token
  std::vector<Answer> answers;      // in the order of the text
  int context_bytes;  // the context is the first context_bytes of the text;
                      // kTraining: all of it
  int context_tokens;
};

// Errors: InvalidArgument when the facts do not fit in the tokens, there are
// fewer things to ask about than questions, or an option is out of its range.
absl::StatusOr<SyntheticDocument> GenerateSyntheticDocument(
    SyntheticTask task, const SyntheticTextOptions& options, uint64_t seed,
    uint64_t index);

}  // namespace kvmix
