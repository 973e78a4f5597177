#include "attention/kv_stream.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "attention/cache_memory.h"
#include "attention/full_precision.h"
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

template <typename T>
void FreePages(std::pmr::vector<T*>& pages, size_t first, size_t last,
               int64_t bytes) {
  auto* memory = pages.get_allocator().resource();
  for (size_t i = first; i < last; ++i)
    memory->deallocate(pages[i], bytes, kAlignment);
  pages.erase(pages.begin() + first, pages.begin() + last);
  if (pages.capacity() > 4 * pages.size() + 4) pages.shrink_to_fit();
}

}  // namespace

KvStream::KvStream(Side side, const Formats& formats, int head_dim,
                   int64_t sink_tokens, std::pmr::memory_resource* memory,
                   NumberType full_precision)
    : side_(side),
      full_precision_(full_precision),
      has_demoted_(formats.demoted != nullptr),
      head_dim_(head_dim),
      rotation_(formats.rotation),
      max_sinks_(sink_tokens),
      runs_(memory),
      sink_pages_(memory),
      window_pages_(memory) {
  runs_.reserve(formats.by_age.size() + (has_demoted_ ? 1 : 0));
  if (has_demoted_) runs_.emplace_back(formats.demoted, memory);
  for (const BlockCodec* codec : formats.by_age)
    runs_.emplace_back(codec, memory);
  for (const Run& run : runs_)
    KVMIX_CHECK(!run.codec->pre_rope() || rotation_ != nullptr);
}

KvStream::~KvStream() {
  for (size_t i = 0; i < sink_pages_.size(); ++i)
    memory()->deallocate(sink_pages_[i], SinkPageBytes(i), kAlignment);
  for (uint8_t* page : window_pages_)
    memory()->deallocate(page, WindowPageBytes(), kAlignment);
  for (Run& run : runs_)
    for (uint8_t* page : run.pages)
      memory()->deallocate(page, run.page_bytes(), kAlignment);
}

int64_t KvStream::packed_tokens() const {
  int64_t tokens = 0;
  for (const Run& run : runs_) tokens += run.num_tokens();
  return tokens;
}

std::vector<const BlockCodec*> KvStream::codecs() const {
  std::vector<const BlockCodec*> codecs;
  for (const Run& run : runs_) codecs.push_back(run.codec);
  return codecs;
}

int64_t KvStream::SinkPageTokens(int64_t page) const {
  return std::min<int64_t>(kPageTokens, max_sinks_ - page * kPageTokens);
}

int64_t KvStream::SinkPageBytes(int64_t page) const {
  return SinkPageTokens(page) * TokenBytes();
}

int64_t KvStream::WindowPageBytes() const {
  return int64_t{kPageTokens} * TokenBytes();
}

KvStream::Piece KvStream::WindowPiece(int64_t position, int64_t end) const {
  const int64_t page = position / kPageTokens;
  const int64_t index = page - window_begin_ / kPageTokens;
  const int64_t in_page = position % kPageTokens;
  return {.num_tokens = std::min((page + 1) * kPageTokens, end) - position,
          .numbers = window_pages_[index] + OffsetInPage(in_page),
          .stride = side_ == Side::kKey ? kPageTokens : head_dim_,
          .first = static_cast<int>(in_page),
          .ahead = Ahead(window_pages_, index)};
}

KvStream::Piece KvStream::SinkPiece(int64_t token, int64_t end) const {
  const int64_t page = token / kPageTokens, in_page = token % kPageTokens;
  return {.num_tokens = std::min((page + 1) * kPageTokens, end) - token,
          .numbers = sink_pages_[page] + OffsetInPage(in_page),
          .stride = side_ == Side::kKey ? SinkPageTokens(page) : head_dim_,
          .first = static_cast<int>(in_page)};
}

KvStream::Piece KvStream::RunPiece(const Run& run, int64_t position) const {
  const int64_t block = run.BlockOf(position);
  const int64_t page = block / kBlocksPerPage;
  const int64_t index = page - run.first_page();
  return {.num_tokens = std::min((page + 1) * kBlocksPerPage * run.block_tokens,
                                 run.end) -
                        position,
          .block = run.pages[index] + block % kBlocksPerPage * run.block_stride,
          .codec = run.codec,
          .block_stride = run.block_stride,
          .first = static_cast<int>(position - block * run.block_tokens),
          .position = TextPosition(position),
          .ahead = Ahead(run.pages, index)};
}

KvStream::Piece KvStream::PieceAt(int64_t token) const {
  if (token < num_sinks_) return SinkPiece(token, num_sinks_);
  int64_t position = token - num_sinks_;
  for (const Run& run : runs_) {
    if (position < run.num_tokens()) return RunPiece(run, run.begin + position);
    position -= run.num_tokens();
  }
  return WindowPiece(window_begin_ + position, window_end_);
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
  const int64_t page = window_end_ / kPageTokens - window_begin_ / kPageTokens;
  if (page == static_cast<int64_t>(window_pages_.size()))
    NewPage(window_pages_, WindowPageBytes());
  const Piece place = WindowPiece(window_end_, window_end_ + num_tokens);
  window_end_ += place.num_tokens;
  return place;
}

void KvStream::Append(const float* x, int64_t stride, int64_t count) {
  alignas(float) uint8_t row[kMaxHeadDim * sizeof(float)];
  while (count > 0) {
    const Piece place = NewPlace(count);
    auto* to = const_cast<uint8_t*>(place.numbers);
    for (int64_t t = 0; t < place.num_tokens; ++t, x += stride) {
      if (side_ == Side::kValue) {
        FromFloats(full_precision_, x, head_dim_, to + t * TokenBytes());
        continue;
      }
      FromFloats(full_precision_, x, head_dim_, row);
      VisitNumbers(full_precision_, row, [&]<class T>(const T* from) {
        T* column = reinterpret_cast<T*>(to) + t;
        for (int d = 0; d < head_dim_; ++d) column[d * place.stride] = from[d];
      });
    }
    count -= place.num_tokens;
  }
}

template <typename Fill>
void KvStream::Pack(Run& run, int64_t count, const Fill& fill) {
  KVMIX_CHECK(count >= 0 && count % run.codec->granularity() == 0);
  const int64_t block_tokens = run.block_tokens;
  const int64_t first = run.end, end = run.end + count;
  while (run.end < end) {
    const int64_t block = run.end / block_tokens;
    const int in_block = static_cast<int>(run.end % block_tokens);
    const int n = static_cast<int>(
        std::min<int64_t>(end - run.end, block_tokens - in_block));
    const int64_t page = block / kBlocksPerPage - run.first_page();
    if (page == static_cast<int64_t>(run.pages.size()))
      std::memset(NewPage(run.pages, run.page_bytes()), 0, run.page_bytes());
    const int64_t stride = side_ == Side::kKey ? n : head_dim_;
    float* x = Scratch(int64_t{n} * head_dim_);
    fill(run.end - first, n, x, stride);
    if (run.codec->pre_rope())
      rotation_->Unrotate(TextPosition(run.end), n, x, stride);
    run.codec->Encode(
        x, stride, in_block, n,
        run.pages[page] + block % kBlocksPerPage * run.block_stride);
    run.end += n;
  }
}

void KvStream::PackRows(Run& run, const float* rows, int64_t count) {
  Pack(run, count, [&](int64_t first, int64_t n, float* x, int64_t stride) {
    const float* from = rows + first * head_dim_;
    const bool keys = side_ == Side::kKey;
    for (int64_t t = 0; t < n; ++t, from += head_dim_)
      for (int d = 0; d < head_dim_; ++d)
        x[keys ? d * stride + t : t * stride + d] = from[d];
  });
}

void KvStream::QuantizeOldest(int64_t count) {
  KVMIX_CHECK(codec() != nullptr && count >= 0 && count <= window_tokens());
  const int64_t old_begin = window_begin_;
  Pack(runs_.back(), count,
       [&](int64_t first, int64_t n, float* x, int64_t stride) {
         for (int64_t t = 0; t < n;) {
           const int64_t position = old_begin + first + t;
           const Piece piece = WindowPiece(position, position + n - t);
           ReadNumbers(piece, piece.num_tokens,
                       x + (side_ == Side::kKey ? t : t * stride), stride);
           t += piece.num_tokens;
         }
       });
  window_begin_ += count;
  const size_t left = window_tokens() == 0 ? window_pages_.size()
                                           : window_begin_ / kPageTokens -
                                                 old_begin / kPageTokens;
  FreePages(window_pages_, 0, left, WindowPageBytes());
}

int64_t KvStream::AgingStep(int run) const {
  return std::lcm<int64_t>(age_codec(run).block_tokens(),
                           age_codec(run - 1).granularity());
}

void KvStream::Age(int index, int64_t count) {
  KVMIX_CHECK(index > 0 && index < num_age_runs() &&
              count % AgingStep(index) == 0 && count <= age_tokens(index));
  Run& run = AgeRun(index);
  std::vector<float> rows(count * head_dim_);
  ReadRows([&](int64_t p) { return RunPiece(run, p); }, run.begin,
           run.begin + count, rows.data());
  PackRows(AgeRun(index - 1), rows.data(), count);
  const int64_t old_first = run.first_page();
  run.begin += count;
  const size_t left =
      run.num_tokens() == 0 ? run.pages.size() : run.first_page() - old_first;
  FreePages(run.pages, 0, left, run.page_bytes());
}

void KvStream::Truncate(Run& run, int64_t end) {
  const int64_t block = end / run.block_tokens;
  KVMIX_CHECK(end % run.block_tokens == 0 && end >= run.begin);
  const int64_t pages =
      run.begin == end ? 0
                       : (block - 1) / kBlocksPerPage + 1 - run.first_page();
  FreePages(run.pages, pages, run.pages.size(), run.page_bytes());
  run.end = end;
  const int64_t used = block % kBlocksPerPage;
  if (pages > 0 && used > 0)
    std::memset(run.pages.back() + used * run.block_stride, 0,
                (kBlocksPerPage - used) * run.block_stride);
}

void KvStream::Remove(absl::Span<const int64_t> tokens) {
  if (tokens.empty()) return;
  KVMIX_CHECK(tokens.front() >= num_sinks_ && tokens.back() < num_tokens());
  std::vector<float> rows;  // [n, D], tokens that must be stored again
  auto next = tokens.begin();
  int64_t first = num_sinks_;  // of the part, in the order before
  // Adds the part's positions [begin, end) but for the tokens to remove; token
  // `index` is the first of them.
  const auto add_stayers = [&](const auto& piece_at, int64_t begin, int64_t end,
                               int64_t index) {
    while (begin < end) {
      const int64_t stop =
          next == tokens.end() ? end : std::min(end, begin + *next - index);
      const size_t old_size = rows.size();
      rows.resize(old_size + (stop - begin) * head_dim_);
      ReadRows(piece_at, begin, stop, rows.data() + old_size);
      index += stop - begin + 1;  // one further if one is left out
      begin = stop;
      if (begin == end) return;
      ++begin;
      ++next;
    }
  };
  for (Run& run : runs_) {
    const int64_t count = run.num_tokens();
    if (!rows.empty() || (next != tokens.end() && *next < first + count)) {
      int64_t keep = run.begin;
      if (rows.empty()) {
        keep += *next - first;
        keep -= keep % run.block_tokens;
      }
      add_stayers([&](int64_t p) { return RunPiece(run, p); }, keep, run.end,
                  first + keep - run.begin);
      Truncate(run, keep);
      const int64_t left = static_cast<int64_t>(rows.size()) / head_dim_;
      const int64_t whole = left - left % run.codec->granularity();
      PackRows(run, rows.data(), whole);
      rows.erase(rows.begin(), rows.begin() + whole * head_dim_);
    }
    first += count;
  }
  if (rows.empty() && next == tokens.end()) return;
  add_stayers([&](int64_t p) { return WindowPiece(p, window_end_); },
              window_begin_, window_end_, first);
  FreePages(window_pages_, 0, window_pages_.size(), WindowPageBytes());
  window_begin_ = window_end_ = 0;
  Append(rows.data(), head_dim_, static_cast<int64_t>(rows.size()) / head_dim_);
}

void KvStream::Demote(absl::Span<const int64_t> tokens) {
  if (tokens.empty()) return;
  KVMIX_CHECK(has_demoted_ && tokens.front() >= num_sinks_ + demoted_tokens());
  std::vector<float> rows(tokens.size() * head_dim_);
  for (size_t i = 0; i < tokens.size(); ++i)
    ReadRows([&](int64_t t) { return PieceAt(t); }, tokens[i], tokens[i] + 1,
             rows.data() + i * head_dim_);
  Remove(tokens);
  PackRows(runs_[0], rows.data(), static_cast<int64_t>(tokens.size()));
}

void KvStream::ReadNumbers(const Piece& piece, int64_t count, float* x,
                           int64_t stride) const {
  const int64_t rows = side_ == Side::kKey ? head_dim_ : count;
  const int64_t columns = side_ == Side::kKey ? count : head_dim_;
  for (int64_t row = 0; row < rows; ++row)
    ToFloats(full_precision_,
             piece.numbers + row * piece.stride * BytesOf(full_precision_),
             columns, x + row * stride);
}

// A block that cannot be read in part is read whole, to the side.
void KvStream::ReadPacked(const Piece& piece, int64_t count, float* x,
                          int64_t stride) const {
  const BlockCodec& codec = *piece.codec;
  const int block_tokens = codec.block_tokens();
  const int granularity = codec.granularity();
  const bool keys = side_ == Side::kKey;
  const uint8_t* block = piece.block;
  for (int64_t t = 0; t < count; block += piece.block_stride) {
    const int first = t == 0 ? piece.first : 0;
    const int n =
        static_cast<int>(std::min<int64_t>(block_tokens - first, count - t));
    float* to = x + (keys ? t : t * stride);
    t += n;
    if (first % granularity == 0 && n % granularity == 0) {
      codec.Decode(block, first, n, to, stride);
      continue;
    }
    const int64_t whole_stride = keys ? block_tokens : head_dim_;
    float* whole = Scratch(int64_t{block_tokens} * head_dim_);
    codec.Decode(block, 0, block_tokens, whole, whole_stride);
    const int64_t rows = keys ? head_dim_ : n, columns = keys ? n : head_dim_;
    const float* from = whole + (keys ? first : first * whole_stride);
    for (int64_t row = 0; row < rows; ++row)
      std::copy_n(from + row * whole_stride, columns, to + row * stride);
  }
  if (codec.pre_rope()) rotation_->Rotate(piece.position, count, x, stride);
}

void KvStream::ReadPiece(const Piece& piece, int64_t count, float* x,
                         int64_t stride) const {
  if (piece.numbers != nullptr) {
    ReadNumbers(piece, count, x, stride);
  } else {
    ReadPacked(piece, count, x, stride);
  }
}

void KvStream::Read(int64_t first, int64_t count, float* x,
                    int64_t stride) const {
  for (int64_t t = 0; t < count;) {
    const Piece piece = PieceAt(first + t);
    const int64_t n = std::min(piece.num_tokens, count - t);
    ReadPiece(piece, n, x + (side_ == Side::kKey ? t : t * stride), stride);
    t += n;
  }
}

template <typename Locate>
void KvStream::ReadRows(const Locate& locate, int64_t begin, int64_t end,
                        float* rows) const {
  std::vector<float> columns;
  while (begin < end) {
    const Piece piece = locate(begin);
    const int64_t n = std::min(piece.num_tokens, end - begin);
    if (side_ == Side::kValue) {
      ReadPiece(piece, n, rows, head_dim_);
    } else {
      columns.resize(n * head_dim_);
      ReadPiece(piece, n, columns.data(), n);
      for (int64_t t = 0; t < n; ++t)
        for (int d = 0; d < head_dim_; ++d)
          rows[t * head_dim_ + d] = columns[d * n + t];
    }
    rows += n * head_dim_;
    begin += n;
  }
}

void KvStream::ReadTokens(int64_t first, int64_t count, float* rows) const {
  ReadRows([&](int64_t t) { return PieceAt(t); }, first, first + count, rows);
}

int64_t KvStream::AddTo(LedgerSide& ledger) const {
  LedgerSide own;
  int64_t allocated = 0, pointers = 0;
  for (size_t i = 0; i < sink_pages_.size(); ++i) allocated += SinkPageBytes(i);
  allocated += static_cast<int64_t>(window_pages_.size()) * WindowPageBytes();
  for (const Run& run : runs_) {
    const BlockBytes block = run.codec->bytes();
    const int64_t room = run.block_tokens;
    own.codes += block.codes * run.num_tokens() / room;
    own.scales += block.scales * run.num_tokens() / room;
    own.zeros += block.zeros * run.num_tokens() / room;
    own.side_data += block.side_data * run.num_tokens() / room;
    allocated += static_cast<int64_t>(run.pages.size()) * run.page_bytes();
    pointers += static_cast<int64_t>(run.pages.capacity());
  }
  pointers +=
      static_cast<int64_t>(sink_pages_.capacity() + window_pages_.capacity());
  own.sinks = num_sinks_ * TokenBytes();
  own.window = window_tokens() * TokenBytes();
  own.slack = allocated - own.bytes();

  own.packed_tokens = packed_tokens();
  own.full_precision_tokens = num_sinks_ + window_tokens();
  if (!packs()) own.unquantized_tokens = num_tokens();
  ledger += own;
  return static_cast<int64_t>(sizeof(void*)) * pointers +
         static_cast<int64_t>(sizeof(Run) * runs_.capacity());
}

}  // namespace kvmix
