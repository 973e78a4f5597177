// Sentences about people whose job, possession and place stay the same through
// the document: what a language model can learn to predict from far back.
#pragma once

#include <map>
#include <vector>

#include "kvmix/base/random.h"

namespace kvmix::synthetic {

class Story {
 public:
  // Token ids of the next sentence, 10 to 12 of them.
  std::vector<int> Sentence(CounterRandom& random);

 private:
  struct Person {
    int job, adjective, object, place;
  };

  std::map<int, Person> people_;  // by the index of the name
};

}  // namespace kvmix::synthetic
