// The tasks of the synthetic text: facts to state and questions about them.
#pragma once

#include <memory>

#include "experiments/synthetic/document_builder.h"
#include "experiments/synthetic/synthetic_text.h"
#include "kvmix/base/random.h"

namespace kvmix::synthetic {

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

// Draws the facts of a document. A story has none. Precondition: the options
// are valid and the task is not kMixture.
std::unique_ptr<Exercise> MakeExercise(SyntheticTask task,
                                       const SyntheticTextOptions& options,
                                       CounterRandom& random);

// The most facts that a document of the task can state.
int MostFacts(SyntheticTask task);

// Symbols of a copied string that the question gives.
inline constexpr int kCopyCue = 3;

}  // namespace kvmix::synthetic
