// KvStream: the keys or the values of one KV head of one layer.
//
//   [ sink tokens, half | packed blocks, oldest first | window, half ]
//
// Tokens enter at the right, rounded to half, and leave the window's left end
// in order into packed blocks, so block b holds the same tokens however they
// arrived. All three parts lie in pages:
//   sinks, window   kPageTokens tokens a page; a sink page has no more room
//   than
//                   the sinks need
//   blocks          kBlocksPerPage blocks a page
// A window page is freed as soon as its last token has left. A page of keys is
// [D, tokens] half, one of values [tokens, D], so that products with queries
// and with attention weights run down registers.
#pragma once

#include <cstdint>
#include <memory_resource>
#include <vector>

#include "attention/memory_ledger.h"
#include "kvmix/base/half.h"
#include "quant/quantizer.h"

namespace kvmix {

class KvStream {
 public:
  static constexpr int kPageTokens = 32;
  static constexpr int kBlocksPerPage = 4;

  // codec: null if tokens never leave the window. It outlives the stream.
  KvStream(Side side, const BlockCodec* codec, int head_dim,
           int64_t sink_tokens, std::pmr::memory_resource* memory);
  ~KvStream();
  KvStream(KvStream&&) = default;
  KvStream& operator=(KvStream&&) = delete;

  int64_t num_tokens() const {
    return num_sinks_ + num_packed_ + window_tokens();
  }
  int64_t window_tokens() const { return window_end_ - num_packed_; }
  Side side() const { return side_; }
  const BlockCodec* codec() const { return codec_; }

  // Tokens that lie in one page, from an asked one on.
  struct Piece {
    int64_t num_tokens = 0;
    // Half precision: the token's first number. Keys: channels lie `stride`
    // halves apart, tokens 1; values: tokens lie `stride` apart, channels 1.
    const Half* half = nullptr;
    int64_t stride = 0;
    // Or packed: in this block; the next blocks of the page follow every
    // block_stride() bytes.
    const uint8_t* block = nullptr;
    int first = 0;      // the token's place in the page, or in the block
    int64_t ahead = 0;  // bytes from its page to the next; 0: there is none
  };
  // Precondition: token in [0, num_tokens()).
  Piece PieceAt(int64_t token) const;
  int64_t block_stride() const;

  // Tokens [first, first + count) as floats, in the order of BlockCodec: keys
  // x [D, stride], values x [count, stride].
  void Read(int64_t first, int64_t count, float* x, int64_t stride) const;

  // x: rows of D floats, `stride` floats apart, that fit half.
  void Append(const float* x, int64_t stride, int64_t count);
  // Quantizes the window's `count` oldest tokens, a multiple of the codec's
  // granularity.
  void QuantizeOldest(int64_t count);

  // Adds this stream's bytes; returns those of its page tables.
  int64_t AddTo(LedgerSide& ledger) const;

 private:
  template <typename T>
  using Table = std::pmr::vector<T*>;

  // Bytes from page i of a table to the next; 0 from the last.
  template <typename T>
  static int64_t Ahead(const Table<T>& pages, int64_t i) {
    return i + 1 < static_cast<int64_t>(pages.size())
               ? reinterpret_cast<const char*>(pages[i + 1]) -
                     reinterpret_cast<const char*>(pages[i])
               : 0;
  }
  int64_t SinkPageTokens(int64_t page) const;
  int64_t SinkPageBytes(int64_t page) const;
  int64_t WindowPageBytes() const;
  // A place for tokens that come next: in a page, `num_tokens` of them.
  Piece NewPlace(int64_t num_tokens);
  Piece WindowPiece(int64_t position, int64_t end) const;
  Piece SinkPiece(int64_t token, int64_t end) const;
  void ReadHalf(const Piece& piece, int64_t count, float* x,
                int64_t stride) const;
  void ReadPacked(const Piece& piece, int64_t count, float* x,
                  int64_t stride) const;
  uint8_t* Block(int64_t index) const;
  void FreeLeftPages(int64_t old_begin);
  std::pmr::memory_resource* memory() const {
    return window_pages_.get_allocator().resource();
  }

  Side side_;
  const BlockCodec* codec_;
  int head_dim_;
  int64_t max_sinks_;
  int64_t num_sinks_ = 0;
  // Positions after the sinks: [0, num_packed_) are packed, [num_packed_,
  // window_end_) are in the window.
  int64_t num_packed_ = 0;
  int64_t window_end_ = 0;
  Table<Half> sink_pages_;
  Table<Half> window_pages_;  // the first holds position num_packed_
  Table<uint8_t> block_pages_;
};

}  // namespace kvmix
