#include "attention/kv_stream.h"

#include <algorithm>
#include <cstring>

#include "attention/cache_memory.h"
#include "attention/half_rows.h"
#include "kvmix/base/check.h"

namespace kvmix {
namespace {

constexpr size_t kAlignment = CacheMemory::kPageAlignment;
constexpr int kMaxHeadDim = 4096;

template <typename T>
T* NewPage(std::pmr::vector<T*>& table, int64_t bytes) {
  // First the place in the table: if that throws, no page is lost.
  table.push_back(nullptr);
  auto* memory = table.get_allocator().resource();
  try {
    table.back() = static_cast<T*>(memory->allocate(bytes, kAlignment));
  } catch (...) {
    table.pop_back();
    throw;
  }
  return table.back();
}

// Room for n floats, the calling thread's until it asks again.
float* Scratch(int64_t n) {
  thread_local std::vector<float> scratch;
  if (static_cast<int64_t>(scratch.size()) < n) scratch.resize(n);
  return scratch.data();
}

}  // namespace

KvStream::KvStream(Side side, const BlockCodec* codec, int head_dim,
                   int64_t sink_tokens, std::pmr::memory_resource* memory)
    : side_(side),
      codec_(codec),
      head_dim_(head_dim),
      max_sinks_(sink_tokens),
      sink_pages_(memory),
      window_pages_(memory),
      block_pages_(memory) {}

KvStream::~KvStream() {
  for (size_t i = 0; i < sink_pages_.size(); ++i)
    memory()->deallocate(sink_pages_[i], SinkPageBytes(i), kAlignment);
  for (Half* page : window_pages_)
    memory()->deallocate(page, WindowPageBytes(), kAlignment);
  for (uint8_t* page : block_pages_)
    memory()->deallocate(page, kBlocksPerPage * block_stride(), kAlignment);
}

int64_t KvStream::SinkPageTokens(int64_t page) const {
  return std::min<int64_t>(kPageTokens, max_sinks_ - page * kPageTokens);
}

int64_t KvStream::SinkPageBytes(int64_t page) const {
  return SinkPageTokens(page) * head_dim_ * static_cast<int64_t>(sizeof(Half));
}

int64_t KvStream::WindowPageBytes() const {
  return int64_t{kPageTokens} * head_dim_ * static_cast<int64_t>(sizeof(Half));
}

int64_t KvStream::block_stride() const {
  return (codec_->bytes().total() + 3) / 4 * 4;
}

uint8_t* KvStream::Block(int64_t index) const {
  return block_pages_[index / kBlocksPerPage] +
         index % kBlocksPerPage * block_stride();
}

KvStream::Piece KvStream::WindowPiece(int64_t position, int64_t end) const {
  const int64_t page = position / kPageTokens;
  const int64_t index = page - num_packed_ / kPageTokens;
  const int64_t in_page = position % kPageTokens;
  const bool keys = side_ == Side::kKey;
  return {.num_tokens = std::min((page + 1) * kPageTokens, end) - position,
          .half = window_pages_[index] + (keys ? in_page : in_page * head_dim_),
          .stride = keys ? kPageTokens : head_dim_,
          .first = static_cast<int>(in_page),
          .ahead = Ahead(window_pages_, index)};
}

KvStream::Piece KvStream::SinkPiece(int64_t token, int64_t end) const {
  const int64_t page = token / kPageTokens, in_page = token % kPageTokens;
  const bool keys = side_ == Side::kKey;
  return {.num_tokens = std::min((page + 1) * kPageTokens, end) - token,
          .half = sink_pages_[page] + (keys ? in_page : in_page * head_dim_),
          .stride = keys ? SinkPageTokens(page) : head_dim_,
          .first = static_cast<int>(in_page)};
}

KvStream::Piece KvStream::NewPlace(int64_t num_tokens) {
  if (num_sinks_ < max_sinks_) {
    const int64_t page = num_sinks_ / kPageTokens;
    if (page == static_cast<int64_t>(sink_pages_.size()))
      NewPage(sink_pages_, SinkPageBytes(page));
    const Piece place =
        SinkPiece(num_sinks_, std::min(max_sinks_, num_sinks_ + num_tokens));
    num_sinks_ += place.num_tokens;
    return place;
  }
  const int64_t page = window_end_ / kPageTokens - num_packed_ / kPageTokens;
  if (page == static_cast<int64_t>(window_pages_.size()))
    NewPage(window_pages_, WindowPageBytes());
  const Piece place = WindowPiece(window_end_, window_end_ + num_tokens);
  window_end_ += place.num_tokens;
  return place;
}

void KvStream::Append(const float* x, int64_t stride, int64_t count) {
  Half row[kMaxHeadDim];
  while (count > 0) {
    const Piece place = NewPlace(count);
    Half* to = const_cast<Half*>(place.half);
    for (int64_t t = 0; t < place.num_tokens; ++t, x += stride) {
      if (side_ == Side::kValue) {
        FloatToHalf(x, head_dim_, to + t * place.stride);
        continue;
      }
      FloatToHalf(x, head_dim_, row);
      for (int d = 0; d < head_dim_; ++d) to[d * place.stride + t] = row[d];
    }
    count -= place.num_tokens;
  }
}

void KvStream::QuantizeOldest(int64_t count) {
  KVMIX_CHECK(codec_ != nullptr && count >= 0 && count <= window_tokens() &&
              count % codec_->granularity() == 0);
  const int64_t old_begin = num_packed_;
  const int64_t end = num_packed_ + count;
  const int block_tokens = codec_->block_tokens();
  for (int64_t position = num_packed_; position < end;) {
    const int64_t block = position / block_tokens;
    const int first = static_cast<int>(position % block_tokens);
    const int n = static_cast<int>(
        std::min<int64_t>(end - position, block_tokens - first));
    if (block / kBlocksPerPage == static_cast<int64_t>(block_pages_.size())) {
      const int64_t bytes = kBlocksPerPage * block_stride();
      std::memset(NewPage(block_pages_, bytes), 0, bytes);
    }
    const int64_t stride = side_ == Side::kKey ? n : head_dim_;
    float* x = Scratch(int64_t{n} * head_dim_);
    for (int64_t t = 0; t < n;) {
      const Piece piece = WindowPiece(position + t, position + n);
      ReadHalf(piece, piece.num_tokens,
               x + (side_ == Side::kKey ? t : t * stride), stride);
      t += piece.num_tokens;
    }
    codec_->Encode(x, stride, first, n, Block(block));
    position += n;
  }
  num_packed_ = end;
  FreeLeftPages(old_begin);
}

void KvStream::ReadHalf(const Piece& piece, int64_t count, float* x,
                        int64_t stride) const {
  const int64_t rows = side_ == Side::kKey ? head_dim_ : count;
  const int64_t columns = side_ == Side::kKey ? count : head_dim_;
  for (int64_t row = 0; row < rows; ++row)
    HalfToFloat(piece.half + row * piece.stride, columns, x + row * stride);
}

// A block that cannot be read in part is read whole, to the side.
void KvStream::ReadPacked(const Piece& piece, int64_t count, float* x,
                          int64_t stride) const {
  const int block_tokens = codec_->block_tokens();
  const int granularity = codec_->granularity();
  const bool keys = side_ == Side::kKey;
  const uint8_t* block = piece.block;
  for (int64_t t = 0; t < count; block += block_stride()) {
    const int first = t == 0 ? piece.first : 0;
    const int n =
        static_cast<int>(std::min<int64_t>(block_tokens - first, count - t));
    float* to = x + (keys ? t : t * stride);
    t += n;
    if (first % granularity == 0 && n % granularity == 0) {
      codec_->Decode(block, first, n, to, stride);
      continue;
    }
    const int64_t whole_stride = keys ? block_tokens : head_dim_;
    float* whole = Scratch(int64_t{block_tokens} * head_dim_);
    codec_->Decode(block, 0, block_tokens, whole, whole_stride);
    const int64_t rows = keys ? head_dim_ : n, columns = keys ? n : head_dim_;
    const float* from = whole + (keys ? first : first * whole_stride);
    for (int64_t row = 0; row < rows; ++row)
      std::copy_n(from + row * whole_stride, columns, to + row * stride);
  }
}

void KvStream::Read(int64_t first, int64_t count, float* x,
                    int64_t stride) const {
  for (int64_t t = 0; t < count;) {
    const Piece piece = PieceAt(first + t);
    const int64_t n = std::min(piece.num_tokens, count - t);
    float* to = x + (side_ == Side::kKey ? t : t * stride);
    if (piece.half != nullptr) {
      ReadHalf(piece, n, to, stride);
    } else {
      ReadPacked(piece, n, to, stride);
    }
    t += n;
  }
}

void KvStream::FreeLeftPages(int64_t old_begin) {
  const size_t left = window_tokens() == 0
                          ? window_pages_.size()
                          : num_packed_ / kPageTokens - old_begin / kPageTokens;
  for (size_t i = 0; i < left; ++i)
    memory()->deallocate(window_pages_[i], WindowPageBytes(), kAlignment);
  window_pages_.erase(window_pages_.begin(), window_pages_.begin() + left);
  if (window_pages_.capacity() > 4 * window_pages_.size() + 4)
    window_pages_.shrink_to_fit();
}

KvStream::Piece KvStream::PieceAt(int64_t token) const {
  if (token < num_sinks_) return SinkPiece(token, num_sinks_);
  const int64_t position = token - num_sinks_;
  if (position >= num_packed_) return WindowPiece(position, window_end_);
  const int64_t block_tokens = codec_->block_tokens();
  const int64_t block = position / block_tokens;
  const int64_t page_end =
      (block / kBlocksPerPage + 1) * kBlocksPerPage * block_tokens;
  return {.num_tokens = std::min(page_end, num_packed_) - position,
          .block = Block(block),
          .first = static_cast<int>(position % block_tokens),
          .ahead = Ahead(block_pages_, block / kBlocksPerPage)};
}

int64_t KvStream::AddTo(LedgerSide& ledger) const {
  const int64_t token_bytes = head_dim_ * static_cast<int64_t>(sizeof(Half));
  LedgerSide own;
  int64_t allocated = 0;
  for (size_t i = 0; i < sink_pages_.size(); ++i) allocated += SinkPageBytes(i);
  allocated += static_cast<int64_t>(window_pages_.size()) * WindowPageBytes();
  if (codec_ != nullptr) {
    const BlockBytes block = codec_->bytes();
    const int64_t room = codec_->block_tokens();
    own.codes = block.codes * num_packed_ / room;
    own.scales = block.scales * num_packed_ / room;
    own.zeros = block.zeros * num_packed_ / room;
    allocated += static_cast<int64_t>(block_pages_.size()) * kBlocksPerPage *
                 block_stride();
  }
  own.sinks = num_sinks_ * token_bytes;
  own.window = window_tokens() * token_bytes;
  own.slack = allocated - own.bytes();

  ledger.codes += own.codes;
  ledger.scales += own.scales;
  ledger.zeros += own.zeros;
  ledger.sinks += own.sinks;
  ledger.window += own.window;
  ledger.slack += own.slack;
  ledger.packed_tokens += num_packed_;
  ledger.full_precision_tokens += num_sinks_ + window_tokens();
  return static_cast<int64_t>(sizeof(void*)) *
         static_cast<int64_t>(sink_pages_.capacity() +
                              window_pages_.capacity() +
                              block_pages_.capacity());
}

}  // namespace kvmix
