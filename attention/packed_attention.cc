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

// Tokens that one call of a kernel takes.
struct TokenRun {
  Kernel kernel = Kernel::kNone;
  KvStream::Piece piece;  // that of the first token
  int skip = 0;           // tokens before it in its slice or block
  int64_t num_tokens = 0;
  BlockRun blocks;  // kBlocks
};

// Adds the slices of tokens [piece.first, piece.first + count) while there is
// room; returns how many of the tokens that are.
int64_t AddSlices(const KvStream::Piece& piece, int64_t count, BlockRun& run) {
  const int block_tokens = piece.codec->block_tokens();
  const uint8_t* block = piece.block;
  int in_block = piece.first / kSliceTokens * kSliceTokens;
  int64_t added = in_block - piece.first;
  while (added < count && run.num_slices < kMaxRunSlices) {
    run.slices[run.num_slices++] = {
        .block = block, .index = in_block / kSliceTokens, .ahead = piece.ahead};
    added += kSliceTokens;
    in_block += kSliceTokens;
    if (in_block == block_tokens) {
      in_block = 0;
      block += piece.block_stride;
    }
  }
  return std::min(added, count);
}

// kBlocks: a run goes on from page to page while the format stays.
void AddPages(const KvStream& stream, int64_t first, int64_t last,
              TokenRun& run) {
  KvStream::Piece piece = run.piece;
  for (;;) {
    const int64_t count =
        std::min(piece.num_tokens, last - first - run.num_tokens);
    const int64_t added = AddSlices(piece, count, run.blocks);
    run.num_tokens += added;
    if (added < count || first + run.num_tokens == last ||
        (piece.first + count) % kSliceTokens != 0)
      return;
    piece = stream.PieceAt(first + run.num_tokens);
    if (piece.codec != run.piece.codec || piece.first % kSliceTokens != 0)
      return;
  }
}

// The run that begins at token `first` and ends before token `last`.
TokenRun RunAt(const KvStream& stream, int64_t first, int64_t last) {
  TokenRun run;
  run.piece = stream.PieceAt(first);
  run.kernel = KernelOf(stream, run.piece);
  if (run.kernel == Kernel::kBlocks) {
    run.skip = run.piece.first % kSliceTokens;
    AddPages(stream, first, last, run);
    return run;
  }
  run.num_tokens = std::min(run.piece.num_tokens, last - first);
  if (run.kernel == Kernel::kElevens) {
    run.skip = run.piece.first % ElevenBlock::kTokens;
    run.piece.block +=
        run.piece.first / ElevenBlock::kTokens * run.piece.block_stride;
    run.num_tokens =
        std::min<int64_t>(run.num_tokens, ElevenBlock::kTokens - run.skip);
  } else if (run.kernel == Kernel::kNumbers && stream.side() == Side::kKey) {
    run.skip = run.piece.first;
  }
  return run;
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

// The page of keys in full precision that a piece lies in.
const uint8_t* PageOf(const KvStream& keys, const KvStream::Piece& piece) {
  return piece.numbers - piece.first * BytesOf(keys.full_precision());
}

// Scores from the run's first slice or block on.
void ScoreRun(const KvStream& keys, const TokenRun& run,
              AttentionArithmetic arithmetic, const Rows& queries,
              float* scores) {
  const KvStream::Piece& piece = run.piece;
  if (run.kernel == Kernel::kNumbers) {
    ScorePage(keys.full_precision(), PageOf(keys, piece), queries.head_dim,
              piece.ahead, queries.data, queries.count, scores, kPackedStride);
  } else if (run.kernel == Kernel::kBlocks) {
    ScoreBlocks(*piece.codec->lane_block(), arithmetic, run.blocks,
                queries.data, queries.count, scores, kPackedStride);
  } else {
    ScoreElevens(*piece.codec->eleven_block(), piece.block, piece.ahead,
                 queries.data, queries.count, scores, kPackedStride);
  }
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
  while (first < last) {
    const TokenRun run = RunAt(keys, first, last);
    if (run.kernel == Kernel::kNone) {
      ScoreDecoded(keys, first, run.num_tokens, queries, scores);
    } else if (run.skip == 0) {
      ScoreRun(keys, run, arithmetic, queries, scores);
    } else {
      float* const rows = ThreadScratch().rows;
      ScoreRun(keys, run, arithmetic, queries, rows);
      for (int r = 0; r < queries.count; ++r)
        std::copy_n(rows + r * kPackedStride + run.skip, run.num_tokens,
                    scores + r * kPackedStride);
    }
    first += run.num_tokens;
    scores += run.num_tokens;
  }
}

void AccumulateTokens(const KvStream& values, AttentionArithmetic arithmetic,
                      int64_t first, int64_t last, const float* weights,
                      const Rows& out) {
  KVMIX_CHECK(out.count <= kMaxPackedRows);
  while (first < last) {
    const TokenRun run = RunAt(values, first, last);
    if (run.kernel == Kernel::kNumbers) {
      AccumulatePage(values.full_precision(), run.piece.numbers,
                     static_cast<int>(run.num_tokens), out.head_dim,
                     run.piece.ahead, weights, kPackedStride, out.count,
                     out.data);
    } else if (run.kernel == Kernel::kBlocks) {
      const int64_t whole = run.blocks.num_slices * kSliceTokens;
      const float* run_weights = weights;
      if (run.num_tokens < whole) {
        float* rows = ThreadScratch().rows;
        for (int r = 0; r < out.count; ++r, rows += kPackedStride) {
          std::fill_n(rows, whole, 0.0f);
          std::copy_n(weights + r * kPackedStride, run.num_tokens,
                      rows + run.skip);
        }
        run_weights = ThreadScratch().rows;
      }
      AccumulateBlocks(*run.piece.codec->lane_block(), arithmetic, run.blocks,
                       run_weights, kPackedStride, out.count, out.data);
    } else {
      AccumulateDecoded(values, first, run.num_tokens, weights, out);
    }
    first += run.num_tokens;
    weights += run.num_tokens;
  }
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
