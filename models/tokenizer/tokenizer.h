// Text to token ids and back.
//
// Every tokenizer here is a byte-pair encoder (BPE) in one pipeline:
//
//   text -> added tokens -> normalizer -> pre-tokenizer -> BPE of each word
//
// configured by the model's own file: a Hugging Face tokenizer.json, a
// SentencePiece tokenizer.model, or the tokenizer.ggml.* keys of a GGUF file.
// What a file asks for and we do not implement is refused by name; ids are
// never approximated.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace kvmix {

struct EncodeOptions {
  // Put BOS in front and EOS behind where the tokenizer's file says so.
  // Default: true.
  bool add_special_tokens = true;

  // Read the text of a special token, such as "<|im_start|>", as that token.
  // Set it for a prompt rendered from a chat template. By default text is
  // data: a corpus that happens to contain "</s>" does not end the sequence.
  // (Hugging Face parses always, SentencePiece never.) Added tokens that are
  // not special are always recognised. Default: false.
  bool parse_special_tokens = false;
};

struct DecodeOptions {
  // Keep the text of special tokens (BOS, EOS, chat markers). Default: false.
  bool keep_special_tokens = false;
};

// Thread-safe: all methods are const and share no mutable state.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // `text` is UTF-8; malformed bytes become byte tokens where the vocabulary
  // has them. A byte or character without a token, where the file names no
  // unknown token, is INVALID_ARGUMENT.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(
      absl::string_view text, const EncodeOptions& options = {}) const = 0;

  // Decode(Encode(text)) == text, byte for byte, unless the file itself loses
  // something: it normalizes text (NFC, removed spaces), maps unknown
  // characters to one token, has added tokens that swallow spaces, puts a space
  // in front only where there is none, or marks spaces with U+2581 while `text`
  // itself holds that character. The result may end in the middle of a
  // character. An id without a token is INVALID_ARGUMENT.
  virtual absl::StatusOr<std::string> Decode(
      absl::Span<const int32_t> ids,
      const DecodeOptions& options = {}) const = 0;

  // The bytes that `id` stands for, for printing token by token; empty when
  // there is no such token.
  virtual std::string TokenText(int32_t id) const = 0;

  // One more than the largest id. Some ids below it may have no token.
  virtual int vocab_size() const = 0;
  virtual std::optional<int32_t> bos_id() const = 0;
  // Ids that end generation; empty when the files name none.
  virtual const std::vector<int32_t>& eos_ids() const = 0;
  // The Jinja source of the chat template, or "". It is not interpreted here.
  virtual const std::string& chat_template() const = 0;
};

// Loads a model folder: tokenizer.json, else tokenizer.model; with the names of
// BOS and EOS from tokenizer_config.json and more EOS ids from
// generation_config.json where these exist.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(
    const std::string& folder);

// Loads the text of a tokenizer.json alone, without a tokenizer_config.json:
// BOS and EOS are what its post_processor adds.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerJson(
    absl::string_view tokenizer_json);

// The tokenizer.ggml.* metadata of a GGUF file, as the file holds them. An
// absent key is nullopt or empty. The views must live during the call only.
struct GgufTokenizerData {
  std::string model;  // "gpt2" (byte-level BPE) or "llama" (SentencePiece BPE)
  std::string pre;    // pre-tokenizer of "gpt2": "smollm", "llama-bpe", ...
  std::vector<absl::string_view> tokens;
  // 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
  std::vector<int64_t> token_types;
  std::vector<double> scores;             // "llama"
  std::vector<absl::string_view> merges;  // "gpt2": "left right", best first
  std::optional<int64_t> bos_token_id;
  std::optional<int64_t> eos_token_id;
  std::optional<int64_t> eot_token_id;
  std::optional<bool> add_bos_token;
  std::optional<bool> add_eos_token;
  std::optional<bool> add_space_prefix;
  std::optional<bool> remove_extra_whitespaces;
  std::string chat_template;
};

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadGgufTokenizer(
    const GgufTokenizerData& data);

}  // namespace kvmix
