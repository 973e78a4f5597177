// The arithmetic of attention over one tile: R query rows against up to
// kTileTokens cached tokens of one KV head, in float.
//
// Rows are (query, query head) pairs that share the KV head. Every row is
// computed alone and in the same order of additions whatever R is.
#pragma once

#include <cstdint>

namespace kvmix {

inline constexpr int kTileTokens = 64;
// ScoreTile and SoftmaxTile handle this many tokens at a time.
inline constexpr int kTokenStep = 16;
constexpr int PaddedTokens(int tokens) {
  return (tokens + kTokenStep - 1) / kTokenStep * kTokenStep;
}

// Below any score; 2^it is 0.
inline constexpr float kMaskedScore = -1e38f;
// Running maximum before the first token.
inline constexpr float kNoScore = -1e30f;

// scores [R, kTileTokens] = queries [R, D] * keys [D, kTileTokens], the first
// PaddedTokens(tokens) columns.
void ScoreTile(const float* queries, int rows, int head_dim, const float* keys,
               int tokens, float* scores);

// One step of the online softmax (Milakov & Gimelshein, arXiv 1805.02867).
// scores [R, stride], in base 2, become 2^(score - new maximum); max [R], sum
// [R] are brought up to date; rescale [R] is what sums of earlier tiles must be
// multiplied by. Columns up to PaddedTokens(tokens) count: those without a
// token hold kMaskedScore.
void SoftmaxTile(float* scores, int64_t stride, int rows, int tokens,
                 float* max, float* sum, float* rescale);

// out [R, D] = out * rescale [R] + weights [R, kTileTokens] * values [tokens,
// D].
void AccumulateTile(const float* weights, const float* rescale, int rows,
                    const float* values, int tokens, int head_dim, float* out);

}  // namespace kvmix
