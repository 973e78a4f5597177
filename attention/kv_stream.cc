#include "attention/kv_stream.h"

#include <algorithm>
#include <cstring>

#include "kvmix/base/check.h"

namespace kvmix {
namespace {

constexpr size_t kAlignment = 64;

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

}  // namespace

KvStream::KvStream(const BlockCodec* codec, int head_dim, int64_t sink_tokens,
                   std::pmr::memory_resource* memory)
    : codec_(codec),
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
    memory()->deallocate(page, kBlocksPerPage * BlockBytesInPage(), kAlignment);
}

int64_t KvStream::SinkPageBytes(size_t page) const {
  const int64_t tokens = std::min<int64_t>(
      kPageTokens, max_sinks_ - static_cast<int64_t>(page) * kPageTokens);
  return tokens * head_dim_ * static_cast<int64_t>(sizeof(Half));
}

int64_t KvStream::WindowPageBytes() const {
  return int64_t{kPageTokens} * head_dim_ * static_cast<int64_t>(sizeof(Half));
}

int64_t KvStream::BlockBytesInPage() const {
  return (codec_->bytes().total() + 3) / 4 * 4;
}

Half* KvStream::WindowRow(int64_t position) const {
  const int64_t page = position / kPageTokens - num_packed_ / kPageTokens;
  return window_pages_[page] + position % kPageTokens * head_dim_;
}

uint8_t* KvStream::Block(int64_t index) const {
  return block_pages_[index / kBlocksPerPage] +
         index % kBlocksPerPage * BlockBytesInPage();
}

Half* KvStream::NewRow() {
  if (num_sinks_ < max_sinks_) {
    const size_t page = num_sinks_ / kPageTokens;
    if (page == sink_pages_.size()) NewPage(sink_pages_, SinkPageBytes(page));
    return sink_pages_[page] + num_sinks_++ % kPageTokens * head_dim_;
  }
  const int64_t page = window_end_ / kPageTokens - num_packed_ / kPageTokens;
  if (page == static_cast<int64_t>(window_pages_.size()))
    NewPage(window_pages_, WindowPageBytes());
  return WindowRow(window_end_++);
}

void KvStream::Append(const float* x, int64_t stride, int64_t count) {
  for (int64_t t = 0; t < count; ++t, x += stride) {
    Half* row = NewRow();
    for (int d = 0; d < head_dim_; ++d) row[d] = ToHalf(x[d]);
  }
}

void KvStream::QuantizeOldest(int64_t count) {
  KVMIX_CHECK(codec_ != nullptr && count >= 0 && count <= window_tokens() &&
              count % codec_->granularity() == 0);
  const int64_t old_begin = num_packed_;
  const int64_t end = num_packed_ + count;
  const int block_tokens = codec_->block_tokens();
  std::vector<float> x(static_cast<size_t>(block_tokens) * head_dim_);
  for (int64_t position = num_packed_; position < end;) {
    const int64_t block = position / block_tokens;
    const int first = static_cast<int>(position % block_tokens);
    const int n = static_cast<int>(
        std::min<int64_t>(end - position, block_tokens - first));
    if (block / kBlocksPerPage == static_cast<int64_t>(block_pages_.size())) {
      const int64_t bytes = kBlocksPerPage * BlockBytesInPage();
      std::memset(NewPage(block_pages_, bytes), 0, bytes);
    }
    for (int t = 0; t < n; ++t) {
      const Half* row = WindowRow(position + t);
      for (int d = 0; d < head_dim_; ++d)
        x[static_cast<size_t>(t) * head_dim_ + d] = ToFloat(row[d]);
    }
    codec_->Encode(x.data(), first, n, Block(block));
    position += n;
  }
  num_packed_ = end;
  FreeLeftPages(old_begin);
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
  if (token < num_sinks_) {
    const int64_t page_end = (token / kPageTokens + 1) * kPageTokens;
    return {.num_tokens = std::min(page_end, num_sinks_) - token,
            .half = sink_pages_[token / kPageTokens] +
                    token % kPageTokens * head_dim_};
  }
  const int64_t position = token - num_sinks_;
  if (position < num_packed_) {
    const int block_tokens = codec_->block_tokens();
    const int64_t block = position / block_tokens;
    return {.num_tokens =
                std::min((block + 1) * block_tokens, num_packed_) - position,
            .block = Block(block),
            .first = static_cast<int>(position % block_tokens)};
  }
  const int64_t page_end = (position / kPageTokens + 1) * kPageTokens;
  return {.num_tokens = std::min(page_end, window_end_) - position,
          .half = WindowRow(position)};
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
                 BlockBytesInPage();
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
