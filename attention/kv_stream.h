// KvStream: the keys or the values of one KV head of one layer.
//
//   [ sink tokens, half | packed blocks, oldest first | window, half ]
//
// Tokens enter at the right, rounded to half, and leave the window's left end
// in order into packed blocks, so block b holds the same tokens however they
// arrived. All three parts lie in pages:
//   sinks, window   32 tokens a page, [32, D] half, tokens in order; a sink
//                   page no longer than the sinks need
//   blocks          kBlocksPerPage blocks a page
// A window page is freed as soon as its last token has left.
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
  KvStream(const BlockCodec* codec, int head_dim, int64_t sink_tokens,
           std::pmr::memory_resource* memory);
  ~KvStream();
  KvStream(KvStream&&) = default;
  KvStream& operator=(KvStream&&) = delete;

  int64_t num_tokens() const {
    return num_sinks_ + num_packed_ + window_tokens();
  }
  int64_t window_tokens() const { return window_end_ - num_packed_; }
  const BlockCodec* codec() const { return codec_; }

  // Tokens that lie in one piece, from an asked one on.
  struct Piece {
    int64_t num_tokens = 0;
    const Half* half = nullptr;      // [num_tokens, D], or null: packed,
    const uint8_t* block = nullptr;  // in codec()'s block,
    int first = 0;                   // from this token of it on
  };
  // Precondition: token in [0, num_tokens()).
  Piece PieceAt(int64_t token) const;

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

  int64_t SinkPageBytes(size_t page) const;
  int64_t WindowPageBytes() const;
  int64_t BlockBytesInPage() const;
  Half* NewRow();
  Half* WindowRow(int64_t position) const;
  uint8_t* Block(int64_t index) const;
  void FreeLeftPages(int64_t old_begin);
  std::pmr::memory_resource* memory() const {
    return window_pages_.get_allocator().resource();
  }

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
