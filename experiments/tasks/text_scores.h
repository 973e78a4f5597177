// Scores of a generated text against references, each in [0, 1]: what LongBench
// and GSM8K are scored by. LongBench's program differs in two: its edit
// similarity counts a replaced character twice, over the sum of both lengths,
// and its ROUGE-L goes sentence by sentence.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace kvmix {

// Lower case, punctuation and the articles a, an, the removed, single spaces.
std::string NormalizedAnswer(absl::string_view text);

// Harmonic mean of precision and recall over the words of normalized answers.
double WordF1(absl::string_view text, absl::string_view reference);

// F-measure of the longest common subsequence of words (ROUGE-L, lower case).
double RougeL(absl::string_view text, absl::string_view reference);

// 1 / number of classes that the text names if the right one is among them.
// Classes that are a part of the right one's name do not count.
double Classification(absl::string_view text, absl::string_view reference,
                      const std::vector<std::string>& classes);

// Share of the numbers in the text that are the reference's number.
double Retrieval(absl::string_view text, absl::string_view reference);

// 1 - edit distance / longer length, of the first line that is neither blank
// nor a comment (# or //) nor a code fence.
double EditSimilarity(absl::string_view text, absl::string_view reference);

// The number behind "####", or else the last number; "" if there is none.
// Commas and a final point are not part of a number.
std::string FinalNumber(absl::string_view text);

}  // namespace kvmix
