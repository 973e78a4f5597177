// KvStream: the keys or the values of one KV head of one layer.
//
//   [ sink tokens | runs of packed blocks, oldest first | window ]
//
// Sinks and window are in full precision (full_precision.h): half, unless the
// plan says otherwise. Tokens enter at the right, rounded to it, and leave the
// window's left end in order into packed blocks, so block b holds the same
// tokens however they arrived. A run holds blocks of one format. Most streams
// have one; a policy that stores older tokens in fewer bits has a run for each
// format, and one that demotes tokens has a run in front for these. All parts
// lie in pages:
//   sinks, window   kPageTokens tokens a page; a sink page has no more room
//                   than the sinks need
//   runs            kBlocksPerPage blocks a page
// A page is freed as soon as its last token has left. A page of keys is
// [D, tokens], one of values [tokens, D], so that products with queries
// and with attention weights run down registers.
#pragma once

#include <bit>
#include <cstdint>
#include <memory_resource>
#include <vector>

#include "absl/types/span.h"
#include "attention/full_precision.h"
#include "attention/memory_ledger.h"
#include "kvmix/key_rotation.h"
#include "quant/quantizer.h"

namespace kvmix {

class KvStream {
 public:
  static constexpr int kPageTokens = 32;
  static constexpr int kBlocksPerPage = 4;
  // Pages between one that is read and one that is best prefetched meanwhile.
  static constexpr int kPagesAhead = 4;

  // Codecs of the runs and the rotation outlive the stream.
  struct Formats {
    const BlockCodec* demoted = nullptr;    // null: no run of demoted tokens
    std::vector<const BlockCodec*> by_age;  // oldest first; empty: tokens never
                                            // leave the window
    // How keys are turned by position. A codec of keys before RoPE needs it,
    // and that no token is taken out: a token's position is its place.
    const KeyRotation* rotation = nullptr;
  };

  KvStream(Side side, const Formats& formats, int head_dim, int64_t sink_tokens,
           std::pmr::memory_resource* memory,
           NumberType full_precision = NumberType::kHalf);
  ~KvStream();
  KvStream(KvStream&&) = default;
  KvStream& operator=(KvStream&&) = delete;

  int64_t num_tokens() const {
    return num_sinks_ + packed_tokens() + window_tokens();
  }
  int64_t num_sinks() const { return num_sinks_; }
  int64_t packed_tokens() const;
  int64_t demoted_tokens() const {
    return has_demoted_ ? runs_[0].num_tokens() : 0;
  }
  int64_t window_tokens() const { return window_end_ - window_begin_; }
  Side side() const { return side_; }
  NumberType full_precision() const { return full_precision_; }
  // What tokens of the window are packed by; null: they stay in the window.
  const BlockCodec* codec() const {
    return num_age_runs() > 0 ? runs_.back().codec : nullptr;
  }
  // Runs by age, the oldest tokens first.
  int num_age_runs() const {
    return static_cast<int>(runs_.size()) - (has_demoted_ ? 1 : 0);
  }
  const BlockCodec& age_codec(int run) const { return *AgeRun(run).codec; }
  int64_t age_tokens(int run) const { return AgeRun(run).num_tokens(); }
  // Whether tokens can be packed.
  bool packs() const { return !runs_.empty(); }
  // Every codec, that of demoted tokens first.
  std::vector<const BlockCodec*> codecs() const;

  // Tokens that lie in one page, from an asked one on.
  struct Piece {
    int64_t num_tokens = 0;
    // Full precision: the token's first number. Keys: channels lie `stride`
    // numbers apart, tokens 1; values: tokens lie `stride` apart, channels 1.
    const uint8_t* numbers = nullptr;
    int64_t stride = 0;
    // Or packed: in this block; the next blocks of the page follow every
    // block_stride bytes.
    const uint8_t* block = nullptr;
    const BlockCodec* codec = nullptr;
    int64_t block_stride = 0;
    int first = 0;         // the token's place in the page, or in the block
    int64_t position = 0;  // packed: its place in the stream, unless others
                           // have been taken out
    int64_t ahead = 0;     // bytes to the page that is best prefetched now, at
                           // the same place; 0: there is none
  };
  // Precondition: token in [0, num_tokens()).
  Piece PieceAt(int64_t token) const;

  // Tokens [first, first + count) as floats, in the order of BlockCodec: keys
  // x [D, stride], values x [count, stride].
  void Read(int64_t first, int64_t count, float* x, int64_t stride) const;
  // The same as rows: x [count, D].
  void ReadTokens(int64_t first, int64_t count, float* x) const;

  // x: rows of D floats, `stride` floats apart, that fit full precision.
  void Append(const float* x, int64_t stride, int64_t count);
  // Quantizes the window's `count` oldest tokens, a multiple of the codec's
  // granularity.
  void QuantizeOldest(int64_t count);
  // Tokens that can pass from age run `run` to the next older one at a time:
  // whole blocks of the one, granules of the other.
  int64_t AgingStep(int run) const;
  // Quantizes anew the `count` oldest tokens of age run `run` > 0 into run
  // run - 1: a multiple of AgingStep(run).
  void Age(int run, int64_t count);
  // Takes tokens out, ascending, none of them a sink, and closes the gaps, in
  // order. Packed tokens behind the first one of a run are quantized anew where
  // blocks change; those that no longer fill a granule pass to the next run, at
  // last to the window.
  void Remove(absl::Span<const int64_t> tokens);
  // Moves such tokens, none of them demoted before, behind the demoted ones: a
  // multiple of that codec's granularity.
  void Demote(absl::Span<const int64_t> tokens);

  // Adds this stream's bytes; returns those of its page tables.
  int64_t AddTo(LedgerSide& ledger) const;

 private:
  template <typename T>
  using Table = std::pmr::vector<T*>;

  // Tokens [begin, end) since the run began; its first page holds `begin`.
  struct Run {
    Run(const BlockCodec* codec, std::pmr::memory_resource* memory)
        : codec(codec),
          block_tokens(codec->block_tokens()),
          block_stride((codec->bytes().total() + 3) / 4 * 4),
          block_shift(
              std::has_single_bit(static_cast<uint64_t>(block_tokens))
                  ? std::countr_zero(static_cast<uint64_t>(block_tokens))
                  : -1),
          pages(memory) {}
    int64_t num_tokens() const { return end - begin; }
    int64_t page_bytes() const { return kBlocksPerPage * block_stride; }
    int64_t first_page() const { return BlockOf(begin) / kBlocksPerPage; }
    int64_t BlockOf(int64_t position) const {
      return block_shift >= 0 ? position >> block_shift
                              : position / block_tokens;
    }
    const BlockCodec* codec;
    // Of the codec, which is asked once: attention needs them for every page.
    int64_t block_tokens, block_stride;
    int block_shift;  // log2 of block_tokens; -1: it is not a power of 2
    int64_t begin = 0, end = 0;
    Table<uint8_t> pages;
  };

  // Bytes from page i of a table to the one kPagesAhead further on; 0: there is
  // none.
  template <typename T>
  static int64_t Ahead(const Table<T>& pages, int64_t i) {
    return i + kPagesAhead < static_cast<int64_t>(pages.size())
               ? reinterpret_cast<const char*>(pages[i + kPagesAhead]) -
                     reinterpret_cast<const char*>(pages[i])
               : 0;
  }
  const Run& AgeRun(int run) const {
    return runs_[run + (has_demoted_ ? 1 : 0)];
  }
  Run& AgeRun(int run) { return runs_[run + (has_demoted_ ? 1 : 0)]; }
  int64_t SinkPageTokens(int64_t page) const;
  int64_t SinkPageBytes(int64_t page) const;
  int64_t WindowPageBytes() const;
  // Of the numbers of a token.
  int64_t TokenBytes() const { return head_dim_ * BytesOf(full_precision_); }
  // Where the numbers of a token lie in a page.
  int64_t OffsetInPage(int64_t token) const {
    return side_ == Side::kKey ? token * BytesOf(full_precision_)
                               : token * TokenBytes();
  }
  // A place for tokens that come next: in a page, `num_tokens` of them.
  Piece NewPlace(int64_t num_tokens);
  Piece WindowPiece(int64_t position, int64_t end) const;
  Piece SinkPiece(int64_t token, int64_t end) const;
  Piece RunPiece(const Run& run, int64_t position) const;
  void ReadNumbers(const Piece& piece, int64_t count, float* x,
                   int64_t stride) const;
  void ReadPacked(const Piece& piece, int64_t count, float* x,
                  int64_t stride) const;
  void ReadPiece(const Piece& piece, int64_t count, float* x,
                 int64_t stride) const;
  // Positions [begin, end) as rows [n, D], locate(position) being where they
  // lie.
  template <typename Locate>
  void ReadRows(const Locate& locate, int64_t begin, int64_t end,
                float* rows) const;
  // Position p of a run: all tokens before it have passed through the sinks, or
  // through this run.
  int64_t TextPosition(int64_t p) const { return max_sinks_ + p; }
  // Packs `count` tokens at the end of a run; fill(first, n, x, stride) gives
  // tokens [first, first + n) of them in the codec's order.
  template <typename Fill>
  void Pack(Run& run, int64_t count, const Fill& fill);
  void PackRows(Run& run, const float* rows, int64_t count);
  // The run ends at `end`, the beginning of a block.
  void Truncate(Run& run, int64_t end);
  std::pmr::memory_resource* memory() const {
    return window_pages_.get_allocator().resource();
  }

  Side side_;
  NumberType full_precision_;
  bool has_demoted_;
  int head_dim_;
  const KeyRotation* rotation_;
  int64_t max_sinks_;
  int64_t num_sinks_ = 0;
  std::pmr::vector<Run> runs_;  // in order of tokens
  // Positions in the window since it began; the first page holds window_begin_.
  int64_t window_begin_ = 0;
  int64_t window_end_ = 0;
  Table<uint8_t> sink_pages_;
  Table<uint8_t> window_pages_;
};

}  // namespace kvmix
