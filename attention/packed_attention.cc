#include "attention/packed_attention.h"

#include <algorithm>
#include <vector>

#include "attention/attention_kernels.h"
#include "kvmix/base/check.h"

namespace kvmix {
namespace {

enum class Kernel { kNumbers, kBlocks, kElevens, kNone };

Kernel KernelOf(const BlockCodec& codec) {
  if (codec.lane_block() != nullptr && HasBlockKernel(*codec.lane_block()))
    return Kernel::kBlocks;
  if (codec.eleven_block() != nullptr &&
      codec.eleven_block()->head_dim % kSliceTokens == 0)
    return Kernel::kElevens;
  return Kernel::kNone;
}

Kernel KernelOf(const KvStream& stream, const KvStream::Piece& piece) {
  if (piece.numbers == nullptr) return KernelOf(*piece.codec);
  // A short page of sinks has no slices.
  const bool slices =
      stream.side() == Side::kValue || piece.stride == KvStream::kPageTokens;
  return slices ? Kernel::kNumbers : Kernel::kNone;
}

// Tokens that the kernel takes at a time.
int UnitOf(Kernel kernel) {
  return kernel == Kernel::kElevens ? ElevenBlock::kTokens : kSliceTokens;
}

// Tokens [first, first + count) of a page in runs of whole units:
// body(first_unit, num_units, skip, n), where n of the run's tokens are meant,
// from token `skip` of its first unit on.
template <class Body>
void ForRuns(int first, int64_t count, int unit, const Body& body) {
  while (count > 0) {
    const int skip = first % unit;
    const int units = static_cast<int>(
        std::min<int64_t>(kMaxRunSlices, (skip + count + unit - 1) / unit));
    const int n =
        static_cast<int>(std::min<int64_t>(count, units * unit - skip));
    body(first / unit, units, skip, n);
    first += n;
    count -= n;
  }
}

// body(piece, tokens of it, offset from `first`)
template <class Body>
void ForPieces(const KvStream& stream, int64_t first, int64_t last,
               const Body& body) {
  for (int64_t t = first; t < last;) {
    const KvStream::Piece piece = stream.PieceAt(t);
    const int64_t n = std::min(piece.num_tokens, last - t);
    body(piece, n, t - first);
    t += n;
  }
}

// Memory of one thread: a tile of floats, and rows of a run.
struct Scratch {
  alignas(64) float rows[kMaxPackedRows * kPackedStride];
  std::vector<float> tile;
  float* Tile(int head_dim) {
    const size_t size = size_t{kTileTokens} * head_dim;
    if (tile.size() < size + 16) tile.resize(size + 16);
    const auto address = reinterpret_cast<uintptr_t>(tile.data());
    return tile.data() + (64 - address % 64) % 64 / sizeof(float);
  }
};
Scratch& ThreadScratch() {
  thread_local Scratch scratch;
  return scratch;
}

BlockRun RunOf(const KvStream::Piece& piece, int first_unit, int num_units) {
  return {.block = piece.block,
          .stride = piece.block_stride,
          .first_slice = first_unit,
          .num_slices = num_units,
          .ahead = piece.ahead};
}

// The page of keys in full precision that a piece lies in.
const uint8_t* PageOf(const KvStream& keys, const KvStream::Piece& piece) {
  return piece.numbers - piece.first * BytesOf(keys.full_precision());
}

void ScoreRun(const KvStream& keys, const KvStream::Piece& piece, Kernel kernel,
              AttentionArithmetic arithmetic, int first_unit, int num_units,
              const Rows& queries, float* scores) {
  if (kernel == Kernel::kNumbers) {
    ScorePage(keys.full_precision(), PageOf(keys, piece), queries.head_dim,
              piece.ahead, queries.data, queries.count, scores, kPackedStride);
    return;
  }
  BlockRun run = RunOf(piece, first_unit, num_units);
  if (kernel == Kernel::kBlocks) {
    ScoreBlocks(*piece.codec->lane_block(), arithmetic, run, queries.data,
                queries.count, scores, kPackedStride);
    return;
  }
  run.block += first_unit * run.stride;
  ScoreElevens(*piece.codec->eleven_block(), run, num_units, queries.data,
               queries.count, scores, kPackedStride);
}

void ScoreDecoded(const KvStream& keys, int64_t first, int64_t count,
                  const Rows& queries, float* scores) {
  Scratch& s = ThreadScratch();
  for (int64_t t = 0; t < count; t += kTileTokens) {
    const int n = static_cast<int>(std::min<int64_t>(kTileTokens, count - t));
    float* tile = s.Tile(queries.head_dim);
    keys.Read(first + t, n, tile, kTileTokens);
    ScoreTile(queries.data, queries.count, queries.head_dim, tile, n, s.rows);
    for (int r = 0; r < queries.count; ++r)
      std::copy_n(s.rows + r * kTileTokens, n, scores + r * kPackedStride + t);
  }
}

void AccumulateDecoded(const KvStream& values, int64_t first, int64_t count,
                       const float* weights, const Rows& out) {
  static constexpr float kOnes[kMaxPackedRows] = {1, 1, 1, 1, 1, 1, 1, 1};
  Scratch& s = ThreadScratch();
  for (int64_t t = 0; t < count; t += kTileTokens) {
    const int n = static_cast<int>(std::min<int64_t>(kTileTokens, count - t));
    float* tile = s.Tile(out.head_dim);
    values.Read(first + t, n, tile, out.head_dim);
    for (int r = 0; r < out.count; ++r)
      std::copy_n(weights + r * kPackedStride + t, n, s.rows + r * kTileTokens);
    AccumulateTile(s.rows, kOnes, out.count, tile, n, out.head_dim, out.data);
  }
}

}  // namespace

int64_t PackedTileEnd(const KvStream& keys, int64_t first, int64_t limit) {
  limit = std::min(limit, first + kPackedTile);
  int64_t end = first;
  while (end < limit) {
    const KvStream::Piece piece = keys.PieceAt(end);
    int64_t n = std::min(piece.num_tokens, limit - end);
    if (n < piece.num_tokens && limit == first + kPackedTile) {
      n -= (piece.first + n) % UnitOf(KernelOf(keys, piece));
      if (n <= 0 && end > first) break;
      if (n <= 0) n = limit - end;
      return end + n;
    }
    end += n;
  }
  return end;
}

void ScoreTokens(const KvStream& keys, AttentionArithmetic arithmetic,
                 int64_t first, int64_t last, const Rows& queries,
                 float* scores) {
  KVMIX_CHECK(queries.count <= kMaxPackedRows);
  ForPieces(keys, first, last, [&](const auto& piece, int64_t n, int64_t t) {
    const Kernel kernel = KernelOf(keys, piece);
    if (kernel == Kernel::kNone) {
      ScoreDecoded(keys, first + t, n, queries, scores + t);
      return;
    }
    float* to = scores + t;
    ForRuns(piece.first, n, UnitOf(kernel),
            [&](int unit, int units, int skip, int count) {
              float* out = skip == 0 ? to : ThreadScratch().rows;
              ScoreRun(keys, piece, kernel, arithmetic, unit, units, queries,
                       out);
              for (int r = 0; skip != 0 && r < queries.count; ++r)
                std::copy_n(out + r * kPackedStride + skip, count,
                            to + r * kPackedStride);
              to += count;
            });
  });
}

void AccumulateTokens(const KvStream& values, AttentionArithmetic arithmetic,
                      int64_t first, int64_t last, const float* weights,
                      const Rows& out) {
  KVMIX_CHECK(out.count <= kMaxPackedRows);
  ForPieces(values, first, last, [&](const auto& piece, int64_t n, int64_t t) {
    const Kernel kernel = KernelOf(values, piece);
    const float* from = weights + t;
    if (kernel == Kernel::kNumbers) {
      AccumulatePage(values.full_precision(), piece.numbers,
                     static_cast<int>(n), out.head_dim, piece.ahead, from,
                     kPackedStride, out.count, out.data);
      return;
    }
    if (kernel != Kernel::kBlocks) {
      AccumulateDecoded(values, first + t, n, from, out);
      return;
    }
    ForRuns(piece.first, n, kSliceTokens,
            [&](int unit, int units, int skip, int count) {
              const float* run_weights = from;
              if (skip != 0 || count < units * kSliceTokens) {
                float* rows = ThreadScratch().rows;
                for (int r = 0; r < out.count; ++r, rows += kPackedStride) {
                  std::fill_n(rows, units * kSliceTokens, 0.0f);
                  std::copy_n(from + r * kPackedStride, count, rows + skip);
                }
                run_weights = ThreadScratch().rows;
              }
              AccumulateBlocks(*piece.codec->lane_block(), arithmetic,
                               RunOf(piece, unit, units), run_weights,
                               kPackedStride, out.count, out.data);
              from += count;
            });
  });
}

void PrefetchTokens(const KvStream& stream, int64_t first, int head_dim) {
  const KvStream::Piece piece = stream.PieceAt(first);
  if (piece.block != nullptr) {
    const int64_t tokens = piece.first + piece.num_tokens;
    const int64_t block_tokens = piece.codec->block_tokens();
    PrefetchLines(piece.block, (tokens + block_tokens - 1) / block_tokens *
                                   piece.block_stride);
    return;
  }
  const bool by_channel = piece.stride == KvStream::kPageTokens;
  const uint8_t* page = by_channel ? PageOf(stream, piece) : piece.numbers;
  const int64_t tokens = by_channel ? KvStream::kPageTokens : piece.num_tokens;
  PrefetchLines(page, tokens * head_dim * BytesOf(stream.full_precision()));
}

std::string PackedKernelName(const BlockCodec& codec,
                             AttentionArithmetic arithmetic) {
  switch (KernelOf(codec)) {
    case Kernel::kBlocks:
      return arithmetic == AttentionArithmetic::kInt8 &&
                     HasInt8Kernel(*codec.lane_block())
                 ? "int8"
                 : "float";
    case Kernel::kElevens:
      return "float";
    default:
      return "float, decoded first";
  }
}

}  // namespace kvmix
