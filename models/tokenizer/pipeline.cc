#include "models/tokenizer/pipeline.h"

#include <array>
#include <limits>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kvmix/base/status_macros.h"
#include "models/tokenizer/unicode.h"

namespace kvmix {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 29;

// The ids of words seen before in the same text.
class WordCache {
 public:
  absl::Status Encode(const WordEncoder& encoder, absl::string_view word,
                      std::vector<int32_t>* ids) {
    if (word.size() > kLongestWord) return encoder.Encode(word, ids);
    const auto it = entries_.find(word);
    if (it != entries_.end()) {
      const auto [begin, size] = it->second;
      ids->insert(ids->end(), pool_.begin() + begin,
                  pool_.begin() + begin + size);
      return absl::OkStatus();
    }
    const size_t before = ids->size();
    KVMIX_RETURN_IF_ERROR(encoder.Encode(word, ids));
    if (entries_.size() < kMostWords) {
      entries_.try_emplace(std::string(word), pool_.size(),
                           ids->size() - before);
      pool_.insert(pool_.end(), ids->begin() + before, ids->end());
    }
    return absl::OkStatus();
  }

 private:
  static constexpr size_t kLongestWord = 64;
  static constexpr size_t kMostWords = 1 << 17;
  std::vector<int32_t> pool_;
  absl::flat_hash_map<std::string, std::pair<size_t, size_t>> entries_;
};

class Pipeline final : public Tokenizer {
 public:
  explicit Pipeline(PipelineSpec spec) : spec_(std::move(spec)) {
    for (AddedToken token : spec_.added_tokens) {
      if (token.normalized) {
        token.content = spec_.normalizer.Apply(token.content);
        added_after_.Add(token);
      } else {
        added_before_.Add(token);
      }
    }
  }

  absl::StatusOr<std::vector<int32_t>> Encode(
      absl::string_view text, const EncodeOptions& options) const override {
    if (text.size() > kMaxTextBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("text has ", text.size(), " bytes; encode at most ",
                       kMaxTextBytes, " at a time"));
    }
    std::vector<int32_t> ids;
    if (options.add_special_tokens) ids = spec_.prefix;
    WordCache cache;
    const auto encode_word = [&](absl::string_view word) {
      if (word.size() > std::numeric_limits<int32_t>::max())
        return absl::InvalidArgumentError("a word of the text exceeds 2 GiB");
      return cache.Encode(*spec_.word_encoder, word, &ids);
    };
    KVMIX_RETURN_IF_ERROR(added_before_.Split(
        text, options.parse_special_tokens,
        [&](absl::string_view section, int32_t id) {
          if (id != kNoToken) return Push(id, &ids);
          const bool at_text_start = section.data() == text.data();
          const std::string normalized = spec_.normalizer.Apply(section);
          return added_after_.Split(
              normalized, options.parse_special_tokens,
              [&](absl::string_view part, int32_t id) {
                if (id != kNoToken) return Push(id, &ids);
                return spec_.pre_tokenizer.Split(
                    part, at_text_start && part.data() == normalized.data(),
                    encode_word);
              });
        }));
    if (options.add_special_tokens)
      ids.insert(ids.end(), spec_.suffix.begin(), spec_.suffix.end());
    return ids;
  }

  absl::StatusOr<std::string> Decode(
      absl::Span<const int32_t> ids,
      const DecodeOptions& options) const override {
    std::string text;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (!Exists(ids[i])) {
        return absl::InvalidArgumentError(
            absl::StrCat("ids[", i, "] is ", ids[i], " but the vocabulary of ",
                         vocab_size(), " ids has no such token"));
      }
      const PipelineSpec::Token& token = spec_.tokens[ids[i]];
      if (!token.special || options.keep_special_tokens) text += token.bytes;
    }
    if (spec_.strip_leading_space && absl::StartsWith(text, " "))
      text.erase(0, 1);
    return text;
  }

  std::string TokenText(int32_t id) const override {
    return Exists(id) ? spec_.tokens[id].bytes : "";
  }

  int vocab_size() const override { return spec_.tokens.size(); }
  std::optional<int32_t> bos_id() const override { return spec_.bos_id; }
  const std::vector<int32_t>& eos_ids() const override { return spec_.eos_ids; }
  const std::string& chat_template() const override {
    return spec_.chat_template;
  }

 private:
  static absl::Status Push(int32_t id, std::vector<int32_t>* ids) {
    ids->push_back(id);
    return absl::OkStatus();
  }

  bool Exists(int64_t id) const {
    return id >= 0 && id < vocab_size() && spec_.tokens[id].exists;
  }

  PipelineSpec spec_;
  AddedTokens added_before_;  // looked for in the text as it is
  AddedTokens added_after_;   // looked for in the normalized text
};

// What each character of GPT-2's alphabet stands for; -1 for the others. Bytes
// that print stand for themselves, the others for U+0100 onward in order.
constexpr int kAlphabetEnd = 0x144;
std::array<int, kAlphabetEnd> MakeByteAlphabet() {
  std::array<int, kAlphabetEnd> byte_of;
  byte_of.fill(-1);
  int next = 0x100;
  for (int b = 0; b < 256; ++b) {
    const bool prints = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) ||
                        (b >= 0xAE && b <= 0xFF);
    byte_of[prints ? b : next++] = b;
  }
  return byte_of;
}

}  // namespace

absl::Status PipelineSpec::AddToken(int64_t id, Token token) {
  if (id < 0 || id >= kMaxVocabSize) {
    return absl::InvalidArgumentError(
        absl::StrCat("token \"", absl::CHexEscape(token.bytes), "\" has id ",
                     id, " but ids must be in [0, ", kMaxVocabSize, ")"));
  }
  if (token.bytes.size() > kMaxTokenBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("token ", id, " has ", token.bytes.size(),
                     " bytes; at most ", kMaxTokenBytes, " are accepted"));
  }
  if (id >= static_cast<int64_t>(tokens.size())) tokens.resize(id + 1);
  if (tokens[id].exists) {
    return absl::InvalidArgumentError(
        absl::StrCat("id ", id, " is given to two tokens, \"",
                     absl::CHexEscape(tokens[id].bytes), "\" and \"",
                     absl::CHexEscape(token.bytes), "\""));
  }
  token.exists = true;
  tokens[id] = std::move(token);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> MakePipeline(PipelineSpec spec) {
  const auto check = [&](absl::Span<const int32_t> ids,
                         absl::string_view what) {
    for (int32_t id : ids) {
      if (id < 0 || id >= static_cast<int64_t>(spec.tokens.size()) ||
          !spec.tokens[id].exists) {
        return absl::InvalidArgumentError(absl::StrCat(
            what, " is ", id, " but the vocabulary has no such token"));
      }
    }
    return absl::OkStatus();
  };
  KVMIX_RETURN_IF_ERROR(check(spec.prefix, "an id put before the text"));
  KVMIX_RETURN_IF_ERROR(check(spec.suffix, "an id put behind the text"));
  KVMIX_RETURN_IF_ERROR(check(spec.eos_ids, "an EOS id"));
  if (spec.bos_id) KVMIX_RETURN_IF_ERROR(check({*spec.bos_id}, "the BOS id"));
  return std::make_unique<Pipeline>(std::move(spec));
}

std::optional<std::string> FromByteAlphabet(absl::string_view token) {
  static const std::array<int, kAlphabetEnd> kByteOf = MakeByteAlphabet();
  std::string bytes;
  while (!token.empty()) {
    const int32_t c = FirstCharacter(token);
    if (c < 0 || c >= kAlphabetEnd || kByteOf[c] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kByteOf[c]));
    token.remove_prefix(Utf8CharSize(token));
  }
  return bytes;
}

std::optional<uint8_t> ParseByteToken(absl::string_view token) {
  std::string byte;
  if (token.size() != 6 || !absl::StartsWith(token, "<0x") || token[5] != '>' ||
      !absl::ascii_isxdigit(token[3]) || !absl::ascii_isxdigit(token[4])) {
    return std::nullopt;
  }
  byte = absl::HexStringToBytes(token.substr(3, 2));
  return static_cast<uint8_t>(byte[0]);
}

}  // namespace kvmix
