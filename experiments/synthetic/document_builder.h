// Appends pieces to a SyntheticDocument and keeps its spans.
#pragma once

#include <utility>
#include <vector>

#include "experiments/synthetic/synthetic_text.h"
#include "experiments/synthetic/vocabulary.h"

namespace kvmix::synthetic {

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

}  // namespace kvmix::synthetic
