// The tokenizer that every loader builds: added tokens, normalizer,
// pre-tokenizer and BPE put together, and a table for the way back.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "models/tokenizer/added_tokens.h"
#include "models/tokenizer/bpe.h"
#include "models/tokenizer/normalizer.h"
#include "models/tokenizer/pre_tokenizer.h"
#include "models/tokenizer/tokenizer.h"

namespace kvmix {

struct PipelineSpec {
  struct Token {
    std::string bytes;  // what it decodes to
    bool exists = false;
    bool special = false;
  };

  std::vector<Token> tokens;  // by id; at most kMaxVocabSize
  std::vector<AddedToken> added_tokens;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::unique_ptr<WordEncoder> word_encoder;
  std::vector<int32_t> prefix;  // what add_special_tokens adds: BOS
  std::vector<int32_t> suffix;  // and EOS
  // Decode drops one leading space, which Encode has put there.
  bool strip_leading_space = false;
  std::optional<int32_t> bos_id;
  std::vector<int32_t> eos_ids;
  std::string chat_template;

  // Puts `token` at `id`. INVALID_ARGUMENT if the id is out of range or taken.
  absl::Status AddToken(int64_t id, Token token);
};

// INVALID_ARGUMENT if an id in `spec` has no token.
absl::StatusOr<std::unique_ptr<Tokenizer>> MakePipeline(PipelineSpec spec);

// The bytes of a token written in GPT-2's alphabet, in which every byte is a
// printable character (bytes_to_unicode in GPT-2's encoder.py); nullopt if
// another character occurs.
std::optional<std::string> FromByteAlphabet(absl::string_view token);

// The byte of a SentencePiece byte token such as "<0x0A>".
std::optional<uint8_t> ParseByteToken(absl::string_view token);

}  // namespace kvmix
