// Writes documents of the synthetic text to standard output: text, JSON lines,
// or binary ids for the training script.
//
//   generate_text --task=recall --facts=32 --count=3 --format=jsonl
//
// Formats:
//   text: the documents, separated by empty lines.
//   jsonl: one object a line: task, text, context_bytes, context_tokens, ids,
//     classes, and answers as arrays [question, begin, length, question_token,
//     begin_token, token_count].
//   ids: only with --training, whose documents all have the same length. For
//     each document, without separators: uint8 task, uint16 ids[tokens]
//     (little-endian), uint8 classes[tokens].
//   vocabulary: no documents, but the texts of the word tokens, one a line, in
//     the order of their ids.
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "experiments/synthetic/synthetic_text.h"
#include "kvmix/base/status_macros.h"

ABSL_FLAG(std::string, task, "mixture",
          "recall, copy, hop, count, story or mixture");
ABSL_FLAG(std::string, format, "text", "text, jsonl, ids or vocabulary");
ABSL_FLAG(uint64_t, seed, 1,
          "documents are a function of the task, the options, the seed and "
          "their index");
ABSL_FLAG(uint64_t, first, 0, "index of the first document");
ABSL_FLAG(uint64_t, count, 1,
          "number of documents; 0 goes on until the reader closes the pipe");
ABSL_FLAG(bool, training, false,
          "the layout for training: questions throughout, difficulty drawn per "
          "document");
ABSL_FLAG(int, tokens, 2048,
          "length of the context, or of a training document");
ABSL_FLAG(int, facts, 32,
          "facts in the context; for training the most there can be");
ABSL_FLAG(int, questions, 16, "questions after the context");
ABSL_FLAG(double, confusable, 1.0,
          "probability that a key gets siblings that differ in one digit");
ABSL_FLAG(int, copy_length, 12, "copy: symbols of a string");
ABSL_FLAG(int, hops, 2,
          "hop: assignments between a variable and its value; for training the "
          "most there can be");
ABSL_FLAG(std::vector<std::string>, mixture,
          (std::vector<std::string>{"0.62", "0.08", "0.16", "0.08", "0.06"}),
          "mixture: relative frequency of recall, copy, hop, count, story");
ABSL_FLAG(bool, direct, false,
          "hop: ask for the value alone instead of the whole trace");
ABSL_FLAG(
    double, difficulty, 1.0,
    "training: 0 draws mostly one-symbol keys, 1 mostly three-symbol keys");

namespace kvmix {
namespace {

std::string JsonString(absl::string_view text) {
  std::string quoted = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;  // the generator emits printable ASCII only
  }
  return quoted + "\"";
}

std::string JsonLine(const SyntheticDocument& document) {
  auto class_number = [](std::string* out, TokenClass c) {
    absl::StrAppend(out, static_cast<int>(c));
  };
  auto answer = [](std::string* out, const Answer& a) {
    absl::StrAppend(out, "[", a.question, ",", a.begin, ",", a.length, ",",
                    a.question_token, ",", a.begin_token, ",", a.token_count,
                    "]");
  };
  return absl::StrCat(
      "{\"task\":", static_cast<int>(document.task),
      ",\"text\":", JsonString(document.text),
      ",\"context_bytes\":", document.context_bytes,
      ",\"context_tokens\":", document.context_tokens, ",\"ids\":[",
      absl::StrJoin(document.token_ids, ","), "],\"classes\":[",
      absl::StrJoin(document.classes, ",", class_number), "],\"answers\":[",
      absl::StrJoin(document.answers, ",", answer), "]}\n");
}

std::string BinaryIds(const SyntheticDocument& document) {
  std::string bytes(1, static_cast<char>(document.task));
  for (int id : document.token_ids) {
    bytes += static_cast<char>(id & 0xff);
    bytes += static_cast<char>(id >> 8);
  }
  for (TokenClass c : document.classes) bytes += static_cast<char>(c);
  return bytes;
}

bool Write(absl::string_view bytes) {
  return std::fwrite(bytes.data(), 1, bytes.size(), stdout) == bytes.size();
}

absl::Status GenerateText() {
  const std::string format = absl::GetFlag(FLAGS_format);
  if (format == "vocabulary") {
    for (int id = kFirstWord; id < kSyntheticVocabularySize; ++id)
      Write(absl::StrCat(SyntheticTokenText(id), "\n"));
    return absl::OkStatus();
  }
  if (format != "text" && format != "jsonl" && format != "ids") {
    return absl::InvalidArgumentError(
        absl::StrCat("format \"", format,
                     "\" is unknown; known: text, jsonl, ids, vocabulary"));
  }
  const bool training = absl::GetFlag(FLAGS_training);
  if (format == "ids" && !training)
    return absl::InvalidArgumentError("format \"ids\" needs --training");

  KVMIX_ASSIGN_OR_RETURN(const SyntheticTask task,
                         ParseSyntheticTask(absl::GetFlag(FLAGS_task)));
  SyntheticTextOptions options;
  options.layout = training ? Layout::kTraining : Layout::kQuestionsLast;
  options.tokens = absl::GetFlag(FLAGS_tokens);
  options.facts = absl::GetFlag(FLAGS_facts);
  options.questions = absl::GetFlag(FLAGS_questions);
  options.confusable = absl::GetFlag(FLAGS_confusable);
  options.copy_length = absl::GetFlag(FLAGS_copy_length);
  options.hops = absl::GetFlag(FLAGS_hops);
  options.hop_form =
      absl::GetFlag(FLAGS_direct) ? HopForm::kDirect : HopForm::kTrace;
  options.difficulty = absl::GetFlag(FLAGS_difficulty);

  const std::vector<std::string> mixture = absl::GetFlag(FLAGS_mixture);
  if (mixture.size() != options.mixture.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("mixture has ", mixture.size(), " numbers but must have ",
                     options.mixture.size()));
  }
  for (size_t i = 0; i < mixture.size(); ++i) {
    if (!absl::SimpleAtod(mixture[i], &options.mixture[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat("mixture: \"", mixture[i], "\" is not a number"));
    }
  }

  const uint64_t count = absl::GetFlag(FLAGS_count);
  const uint64_t first = absl::GetFlag(FLAGS_first);
  for (uint64_t i = 0; count == 0 || i < count; ++i) {
    KVMIX_ASSIGN_OR_RETURN(
        const SyntheticDocument document,
        GenerateSyntheticDocument(task, options, absl::GetFlag(FLAGS_seed),
                                  first + i));
    const std::string bytes = format == "ids" ? BinaryIds(document)
                              : format == "jsonl"
                                  ? JsonLine(document)
                                  : absl::StrCat(document.text, "\n\n");
    if (!Write(bytes)) break;  // the reader has what it wanted
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace kvmix

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "writes seeded synthetic text to standard output");
  absl::ParseCommandLine(argc, argv);
  const absl::Status status = kvmix::GenerateText();
  if (!status.ok())
    std::fprintf(stderr, "generate_text: %s\n",
                 std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}
