#include "models/tokenizer/bpe.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <queue>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kvmix/base/status_macros.h"
#include "models/tokenizer/unicode.h"

namespace kvmix {
namespace {

constexpr absl::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581

// A piece of the word under way, in a doubly linked list by index.
struct Symbol {
  int32_t begin = 0;
  int32_t size = 0;  // 0: merged into its left neighbour
  int32_t id = kNoToken;
  int32_t prev = -1;
  int32_t next = -1;
};

struct Merge {
  int32_t rank = 0;  // lower merges first
  int32_t id = kNoToken;
};

void Link(std::vector<Symbol>& symbols) {
  const int n = symbols.size();
  for (int i = 0; i < n; ++i) {
    symbols[i].prev = i - 1;
    symbols[i].next = i + 1 < n ? i + 1 : -1;
  }
}

// find(left, right) returns the std::optional<Merge> of two neighbours.
template <typename FindMerge>
void MergeAll(std::vector<Symbol>& symbols, const FindMerge& find) {
  struct Candidate {
    int32_t rank;
    int32_t left;
    int32_t size;  // of both together
    bool operator>(const Candidate& other) const {
      return std::pair(rank, left) > std::pair(other.rank, other.left);
    }
  };
  std::vector<Candidate> first;
  for (int i = 0; i + 1 < static_cast<int>(symbols.size()); ++i) {
    if (const std::optional<Merge> merge = find(symbols[i], symbols[i + 1]))
      first.push_back({merge->rank, i, symbols[i].size + symbols[i + 1].size});
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(
      std::greater<>(), std::move(first));
  const auto consider = [&](int i) {
    if (i < 0 || symbols[i].next < 0) return;
    const Symbol& left = symbols[i];
    const Symbol& right = symbols[left.next];
    if (const std::optional<Merge> merge = find(left, right))
      queue.push({merge->rank, i, left.size + right.size});
  };
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[top.left];
    if (left.size == 0 || left.next < 0) continue;
    Symbol& right = symbols[left.next];
    // Stale: one of the two symbols has merged with another one meanwhile.
    if (left.size + right.size != top.size) continue;
    const std::optional<Merge> merge = find(left, right);
    if (!merge) continue;
    left.id = merge->id;
    left.size += right.size;
    left.next = right.next;
    right.size = 0;
    if (left.next >= 0) symbols[left.next].prev = top.left;
    consider(left.prev);
    consider(top.left);
  }
}

// Whether `token` holds U+2581 behind something else.
bool HasInnerSpaceMark(absl::string_view token) {
  while (absl::string_view(token).substr(0, kSpaceMark.size()) == kSpaceMark)
    token.remove_prefix(kSpaceMark.size());
  return token.find(kSpaceMark) != absl::string_view::npos;
}

bool IsComplete(const std::array<int32_t, 256>& byte_ids) {
  return std::find(byte_ids.begin(), byte_ids.end(), kNoToken) ==
         byte_ids.end();
}

absl::Status NoTokenError(absl::string_view piece) {
  return absl::InvalidArgumentError(absl::StrCat(
      "the vocabulary has no token for \"", absl::CHexEscape(piece),
      "\", no byte tokens and no unknown token; remove it from the text"));
}

class RankedBpe final : public WordEncoder {
 public:
  static absl::StatusOr<std::unique_ptr<WordEncoder>> Make(
      const RankedBpeSpec& spec) {
    auto bpe = std::make_unique<RankedBpe>();
    bpe->spec_ = spec;
    bpe->spec_.merges.clear();
    for (int b = 0; b < 256; ++b) {
      const auto it = spec.vocab.find(std::string(1, static_cast<char>(b)));
      bpe->byte_ids_[b] = it == spec.vocab.end() ? kNoToken : it->second;
    }
    bpe->merges_.reserve(spec.merges.size());
    for (size_t rank = 0; rank < spec.merges.size(); ++rank)
      KVMIX_RETURN_IF_ERROR(bpe->AddMerge(rank, spec.merges[rank]));
    bpe->cuts_before_space_mark_ =
        !spec.byte_level && spec.vocab.contains(kSpaceMark) &&
        std::none_of(spec.vocab.begin(), spec.vocab.end(),
                     [](const auto& t) { return HasInnerSpaceMark(t.first); });
    return bpe;
  }

  absl::Status Encode(absl::string_view word,
                      std::vector<int32_t>* ids) const override {
    if (spec_.ignore_merges) {
      if (const auto it = spec_.vocab.find(word); it != spec_.vocab.end()) {
        ids->push_back(it->second);
        return absl::OkStatus();
      }
    }
    std::vector<Symbol> symbols;
    symbols.reserve(word.size());
    KVMIX_RETURN_IF_ERROR(spec_.byte_level ? SplitBytes(word, &symbols)
                                           : SplitChars(word, &symbols));
    Link(symbols);
    MergeAll(symbols, [this](const Symbol& left, const Symbol& right) {
      const auto it = merges_.find(PairKey(left.id, right.id));
      return it == merges_.end() ? std::nullopt : std::optional(it->second);
    });
    for (const Symbol& symbol : symbols)
      if (symbol.size > 0) ids->push_back(symbol.id);
    return absl::OkStatus();
  }

  bool CutsBeforeSpaceMark() const override { return cuts_before_space_mark_; }

 private:
  static uint64_t PairKey(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 |
           static_cast<uint32_t>(right);
  }

  absl::Status AddMerge(size_t rank,
                        const std::pair<std::string, std::string>& merge) {
    const auto& [left, right] = merge;
    const auto error = [&](absl::string_view reason) {
      return absl::InvalidArgumentError(
          absl::StrCat("merge ", rank, " (\"", absl::CHexEscape(left), "\" \"",
                       absl::CHexEscape(right), "\") ", reason));
    };
    if (left.empty() || right.empty())
      return error("has an empty part: it would merge for ever");
    const auto left_id = spec_.vocab.find(left);
    if (left_id == spec_.vocab.end())
      return error("has a left part that is not in the vocabulary");
    const auto right_id = spec_.vocab.find(right);
    if (right_id == spec_.vocab.end())
      return error("has a right part that is not in the vocabulary");
    const auto id = spec_.vocab.find(left + right);
    if (id == spec_.vocab.end())
      return error("has a result that is not in the vocabulary");
    const bool inserted =
        merges_
            .try_emplace(PairKey(left_id->second, right_id->second),
                         Merge{static_cast<int32_t>(rank), id->second})
            .second;
    if (!inserted) return error("stands twice in the list of merges");
    return absl::OkStatus();
  }

  absl::Status SplitBytes(absl::string_view word,
                          std::vector<Symbol>* symbols) const {
    for (size_t i = 0; i < word.size(); ++i) {
      const int32_t id = byte_ids_[static_cast<uint8_t>(word[i])];
      if (id == kNoToken)
        KVMIX_RETURN_IF_ERROR(AddUnknown(word, i, 1, symbols));
      else
        Add(i, 1, id, symbols);
    }
    return absl::OkStatus();
  }

  absl::Status SplitChars(absl::string_view word,
                          std::vector<Symbol>* symbols) const {
    const bool has_byte_tokens = IsComplete(spec_.byte_fallback);
    for (size_t i = 0; i < word.size();) {
      const size_t size = std::max<size_t>(Utf8CharSize(word.substr(i)), 1);
      const auto it = spec_.vocab.find(word.substr(i, size));
      if (it != spec_.vocab.end()) {
        Add(i, size, it->second, symbols);
      } else if (has_byte_tokens) {
        for (size_t b = i; b < i + size; ++b)
          Add(b, 1, spec_.byte_fallback[static_cast<uint8_t>(word[b])],
              symbols);
      } else {
        KVMIX_RETURN_IF_ERROR(AddUnknown(word, i, size, symbols));
      }
      i += size;
    }
    return absl::OkStatus();
  }

  static void Add(size_t begin, size_t size, int32_t id,
                  std::vector<Symbol>* symbols) {
    Symbol symbol;
    symbol.begin = begin;
    symbol.size = size;
    symbol.id = id;
    symbols->push_back(symbol);
  }

  absl::Status AddUnknown(absl::string_view word, size_t begin, size_t size,
                          std::vector<Symbol>* symbols) const {
    if (spec_.unknown_id == kNoToken)
      return NoTokenError(word.substr(begin, size));
    if (spec_.fuse_unknown && !symbols->empty() &&
        symbols->back().id == spec_.unknown_id) {
      symbols->back().size += size;
    } else {
      Add(begin, size, spec_.unknown_id, symbols);
    }
    return absl::OkStatus();
  }

  RankedBpeSpec spec_;
  std::array<int32_t, 256> byte_ids_;
  absl::flat_hash_map<uint64_t, Merge> merges_;  // by PairKey of the parts
  bool cuts_before_space_mark_ = false;
};

class ScoredBpe final : public WordEncoder {
 public:
  static absl::StatusOr<std::unique_ptr<WordEncoder>> Make(
      const ScoredBpeSpec& spec) {
    auto bpe = std::make_unique<ScoredBpe>();
    bpe->byte_fallback_ = spec.byte_fallback;
    bpe->has_byte_tokens_ = IsComplete(spec.byte_fallback);
    bpe->unknown_id_ = spec.unknown_id;
    std::vector<float> scores;
    for (const auto& piece : spec.pieces) {
      if (std::isnan(piece.score))
        return absl::InvalidArgumentError(
            absl::StrCat("the score of token ", piece.id, " is not a number"));
      scores.push_back(piece.score);
    }
    std::sort(scores.begin(), scores.end(), std::greater<>());
    for (const auto& piece : spec.pieces) {
      const auto rank = std::lower_bound(scores.begin(), scores.end(),
                                         piece.score, std::greater<>());
      bpe->AddPiece(piece, rank - scores.begin());
    }
    bpe->cuts_before_space_mark_ =
        bpe->pieces_.contains(kSpaceMark) &&
        std::none_of(spec.pieces.begin(), spec.pieces.end(),
                     [](const auto& p) { return HasInnerSpaceMark(p.text); });
    return bpe;
  }

  absl::Status Encode(absl::string_view word,
                      std::vector<int32_t>* ids) const override {
    std::vector<Symbol> symbols = SplitCharsAndUserDefined(word);
    Link(symbols);
    // How each unused piece was put together, to take it apart again.
    absl::flat_hash_map<absl::string_view, size_t> left_size_of_unused;
    MergeAll(symbols, [&](const Symbol& left, const Symbol& right) {
      std::optional<Merge> merge;
      const size_t size = left.size + right.size;
      // An id here marks a user-defined piece.
      if (left.id != kNoToken || right.id != kNoToken || size > longest_piece_)
        return merge;
      const auto it = pieces_.find(word.substr(left.begin, size));
      if (it == pieces_.end()) return merge;
      if (it->second.unused)
        left_size_of_unused[word.substr(left.begin, size)] = left.size;
      merge = Merge{it->second.rank, kNoToken};
      return merge;
    });
    bool after_unknown = false;
    for (const Symbol& symbol : symbols) {
      if (symbol.size == 0) continue;
      KVMIX_RETURN_IF_ERROR(Emit(word.substr(symbol.begin, symbol.size),
                                 left_size_of_unused, &after_unknown, ids));
    }
    return absl::OkStatus();
  }

  bool CutsBeforeSpaceMark() const override { return cuts_before_space_mark_; }

 private:
  struct Piece {
    int32_t rank = 0;
    int32_t id = 0;
    bool unused = false;
  };

  void AddPiece(const ScoredBpeSpec::Piece& piece, int32_t rank) {
    pieces_[piece.text] = {rank, piece.id, piece.unused};
    longest_piece_ = std::max(longest_piece_, piece.text.size());
    if (piece.user_defined) user_defined_.Add(piece.text, piece.id);
  }

  std::vector<Symbol> SplitCharsAndUserDefined(absl::string_view word) const {
    std::vector<Symbol> symbols;
    symbols.reserve(word.size());
    for (size_t i = 0; i < word.size();) {
      Symbol symbol;
      symbol.begin = i;
      const auto match = user_defined_.LongestPrefix(word.substr(i));
      if (match.size > 0) {
        symbol.size = match.size;
        symbol.id = match.value;
      } else {
        symbol.size = std::max<size_t>(Utf8CharSize(word.substr(i)), 1);
      }
      symbols.push_back(symbol);
      i += symbol.size;
    }
    return symbols;
  }

  absl::Status Emit(
      absl::string_view piece,
      const absl::flat_hash_map<absl::string_view, size_t>& left_size_of_unused,
      bool* after_unknown, std::vector<int32_t>* ids) const {
    const auto it = pieces_.find(piece);
    if (it != pieces_.end()) {
      const auto split = left_size_of_unused.find(piece);
      if (it->second.unused && split != left_size_of_unused.end()) {
        KVMIX_RETURN_IF_ERROR(Emit(piece.substr(0, split->second),
                                   left_size_of_unused, after_unknown, ids));
        return Emit(piece.substr(split->second), left_size_of_unused,
                    after_unknown, ids);
      }
      ids->push_back(it->second.id);
      *after_unknown = false;
    } else if (has_byte_tokens_) {
      for (char c : piece)
        ids->push_back(byte_fallback_[static_cast<uint8_t>(c)]);
    } else if (unknown_id_ == kNoToken) {
      return NoTokenError(piece);
    } else {
      if (!*after_unknown) ids->push_back(unknown_id_);
      *after_unknown = true;
    }
    return absl::OkStatus();
  }

  absl::flat_hash_map<std::string, Piece> pieces_;
  LiteralMatcher user_defined_;
  size_t longest_piece_ = 0;
  std::array<int32_t, 256> byte_fallback_;
  bool has_byte_tokens_ = false;
  int32_t unknown_id_ = kNoToken;
  bool cuts_before_space_mark_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WordEncoder>> MakeRankedBpe(
    const RankedBpeSpec& spec) {
  return RankedBpe::Make(spec);
}

absl::StatusOr<std::unique_ptr<WordEncoder>> MakeScoredBpe(
    const ScoredBpeSpec& spec) {
  return ScoredBpe::Make(spec);
}

}  // namespace kvmix
