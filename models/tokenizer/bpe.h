// Byte-pair encoding of one word (Sennrich, Haddow and Birch, "Neural Machine
// Translation of Rare Words with Subword Units", 2016): start from bytes or
// characters, and merge the adjacent pair of lowest rank, the leftmost first,
// until no pair is mergeable. A priority queue makes it O(n log n) in the
// length of the word.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "models/tokenizer/literal_matcher.h"

namespace kvmix {

constexpr int32_t kNoToken = -1;

// Limits that no published tokenizer reaches; they bound what a hostile file
// can make us allocate or loop over.
constexpr int64_t kMaxVocabSize = int64_t{1} << 20;
constexpr size_t kMaxTokenBytes = 4096;

class WordEncoder {
 public:
  virtual ~WordEncoder() = default;
  // Appends the ids of `word` (less than 2^31 bytes) to `ids`.
  virtual absl::Status Encode(absl::string_view word,
                              std::vector<int32_t>* ids) const = 0;
  // Whether no token crosses from a non-space to the space mark U+2581, so that
  // text may be cut there without changing its ids.
  virtual bool CutsBeforeSpaceMark() const = 0;
};

// Merges by rank of the id pair: GPT-2's scheme, and Hugging Face's "BPE".
struct RankedBpeSpec {
  // Start from bytes (byte-level BPE) or from UTF-8 characters.
  bool byte_level = true;
  // Bytes as they stand in the word -> id. Byte-level: decoded from GPT-2's
  // printable alphabet.
  absl::flat_hash_map<std::string, int32_t> vocab;
  std::vector<std::pair<std::string, std::string>> merges;  // best first
  bool ignore_merges = false;  // a word that is a token needs no merges
  // Characters without a token become these (id of each byte), all or none.
  std::array<int32_t, 256> byte_fallback;
  int32_t unknown_id = kNoToken;
  bool fuse_unknown = false;  // one unknown token for a run

  RankedBpeSpec() { byte_fallback.fill(kNoToken); }
};

// INVALID_ARGUMENT names the merge when a part or the result has no token, when
// a part is empty, or when the merge stands twice.
absl::StatusOr<std::unique_ptr<WordEncoder>> MakeRankedBpe(
    const RankedBpeSpec& spec);

// Merges by score of the resulting piece, higher first: SentencePiece's BPE.
struct ScoredBpeSpec {
  struct Piece {
    std::string text;
    float score = 0;
    int32_t id = 0;
    bool user_defined = false;  // always one token, never merged further
    bool unused = false;  // may be passed through, is split again at the end
  };
  std::vector<Piece> pieces;
  std::array<int32_t, 256> byte_fallback;
  int32_t unknown_id = kNoToken;

  ScoredBpeSpec() { byte_fallback.fill(kNoToken); }
};

absl::StatusOr<std::unique_ptr<WordEncoder>> MakeScoredBpe(
    const ScoredBpeSpec& spec);

}  // namespace kvmix
