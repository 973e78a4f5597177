// Readers of one format each; LoadTokenizer and its kin join them to the rest.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "models/tokenizer/pipeline.h"

namespace kvmix {

// tokenizer.json of Hugging Face's `tokenizers`, with a model of type BPE.
absl::StatusOr<PipelineSpec> ReadTokenizerJson(absl::string_view text);

// A serialized SentencePiece model of type BPE. BOS is added, as Llama does.
absl::StatusOr<PipelineSpec> ReadSentencePieceModel(absl::string_view bytes);

// The vocabulary of a SentencePiece BPE model, whatever file it came from.
struct SentencePieceVocab {
  // SentencePiece's numbers, and GGUF's.
  enum Type {
    kNormal = 1,
    kUnknown = 2,
    kControl = 3,
    kUserDefined = 4,
    kUnused = 5,
    kByte = 6,
  };
  struct Piece {
    std::string text;
    float score = 0;
    int64_t type = kNormal;
  };
  std::vector<Piece> pieces;  // by id
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = false;
  std::string unknown_surface;  // what the unknown token decodes to
};

absl::StatusOr<PipelineSpec> BuildSentencePiece(
    const SentencePieceVocab& vocab);

}  // namespace kvmix
