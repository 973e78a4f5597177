#include "attention/attention.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "attention/attention_cases.h"
#include "attention/attention_reference.h"
#include "attention/kv_cache_layer.h"
#include "attention/packed_attention.h"
#include "attention/test_policies.h"
#include "kvmix/base/guarded_memory.h"
#include "kvmix/base/half.h"
#include "kvmix/base/instruction_sets.h"
#include "kvmix/base/random.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using testing::Case;
using testing::Cases;
using testing::KeepAll;
using testing::KeepRecent;
using testing::KeepRecentOptions;
using testing::Normals;
using testing::PerChannel;
using testing::PerToken;
using testing::ReferenceAttention;
using testing::ThreeBitWords;
using testing::Unquantized;

// All tokens of one side as stored, [N, G, D].
std::vector<float> Stored(const std::pmr::vector<KvStream>& streams, int D) {
  const int64_t G = static_cast<int64_t>(streams.size());
  const int64_t N = streams[0].num_tokens();
  std::vector<float> x(N * G * D);
  for (int64_t g = 0; g < G; ++g) {
    const bool keys = streams[g].side() == Side::kKey;
    std::vector<float> own(N * D);
    streams[g].Read(0, N, own.data(), keys ? N : D);
    for (int64_t t = 0; t < N; ++t)
      for (int d = 0; d < D; ++d)
        x[(t * G + g) * D + d] = keys ? own[d * N + t] : own[t * D + d];
  }
  return x;
}

// A sequence that has just appended its chunk.
struct Sequence {
  std::unique_ptr<KvCache> cache;
  std::vector<float> queries, out;
  AttentionItem item;
  AttentionOptions options;

  void Attend(ThreadPool& threads) {
    Attention(0, {&item, 1}, options, threads);
  }
};

Sequence MakeSequence(const Case& c, uint64_t stream = 0,
                      std::pmr::memory_resource* memory = nullptr) {
  const CacheShape shape{
      .num_layers = 1, .num_kv_heads = c.kv_heads, .head_dim = c.head_dim};
  CachePlan plan;
  *plan.add_layer()->mutable_key() = c.key;
  *plan.mutable_layer(0)->mutable_value() = c.value;
  plan.set_full_precision(c.full_precision);
  Sequence s;
  auto cache =
      KvCache::Create(shape, plan, std::make_shared<KeepRecent>(c.recency),
                      std::make_shared<KeepAll>(), memory);
  EXPECT_OK(cache);
  s.cache = *std::move(cache);
  const int64_t row = int64_t{c.kv_heads} * c.head_dim;
  const auto append = [&](int64_t n, uint64_t own) {
    const auto keys = Normals(n * row, own);
    const auto values = Normals(n * row, own + 1);
    EXPECT_OK(s.cache->Append(0, n, keys.data(), values.data()));
  };
  if (c.cached > 0) {
    append(c.cached, 100 * stream + 10);
    EXPECT_OK(s.cache->FinishChunk(0));
  }
  append(c.chunk, 100 * stream + 20);
  s.options = {.num_heads = c.kv_heads * c.group,
               .scale = 1 / std::sqrt(static_cast<float>(c.head_dim)),
               .sliding_window = c.sliding_window};
  s.queries = Normals(c.chunk * row * c.group, 100 * stream + 99);
  s.out.resize(s.queries.size());
  s.item = {.cache = s.cache.get(),
            .num_tokens = c.chunk,
            .queries = s.queries.data(),
            .out = s.out.data()};
  return s;
}

// Computes with one instruction set as long as it lives.
struct Forced {
  explicit Forced(int64_t set) { testing::ForceInstructionSet(set); }
  ~Forced() { testing::ForceInstructionSet(0); }
};

ReferenceAttention ReferenceOf(const Case& c) {
  return {.num_heads = c.kv_heads * c.group,
          .num_kv_heads = c.kv_heads,
          .head_dim = c.head_dim,
          .scale = 1 / std::sqrt(static_cast<double>(c.head_dim)),
          .sliding_window = c.sliding_window};
}

class AttentionTest : public ::testing::TestWithParam<Case> {};

// A score's rounding error e makes a relative error e in a weight, so the error
// of the output is bounded by a few float epsilons times (1 + the score's
// condition) times the largest value.
TEST_P(AttentionTest, MatchesReference) {
  const Case& c = GetParam();
  Sequence s = MakeSequence(c);
  ThreadPool threads(1);
  const std::vector<float> keys = Stored(s.cache->layer(0).keys, c.head_dim);
  const std::vector<float> values =
      Stored(s.cache->layer(0).values, c.head_dim);
  std::vector<double> condition;
  const std::vector<double> expected =
      ReferenceOf(c)(s.queries, keys, values, &condition);
  float largest = 0;
  for (float v : values) largest = std::max(largest, std::fabs(v));
  for (int64_t target : testing::InstructionSets()) {
    const Forced forced(target);
    s.out.assign(s.out.size(), -1.0f);
    s.Attend(threads);
    double worst = 0;
    for (size_t i = 0; i < s.out.size(); ++i) {
      const double unit = std::numeric_limits<float>::epsilon() * largest *
                          (1 + condition[i / c.head_dim]);
      worst = std::max(worst, std::fabs(s.out[i] - expected[i]) / unit);
    }
    EXPECT_LT(worst, 1.0) << hwy::TargetName(target);
    RecordProperty(hwy::TargetName(target), std::to_string(worst));
  }
}

// With every instruction set, and so does what quantizes and packs.
TEST_P(AttentionTest, StaysInsideTheCachesPages) {
  testing::GuardedMemory memory;
  ThreadPool threads(1);
  for (int64_t target : testing::InstructionSets()) {
    const Forced forced(target);
    MakeSequence(GetParam(), 0, &memory).Attend(threads);
  }
}

TEST_P(AttentionTest, DoesNotDependOnThreads) {
  Sequence s = MakeSequence(GetParam());
  ThreadPool one(1);
  s.Attend(one);
  const std::vector<float> expected = s.out;
  for (int n : {2, 3, 5}) {
    ThreadPool threads(n);
    s.out.assign(s.out.size(), -1.0f);
    s.Attend(threads);
    EXPECT_EQ(s.out, expected) << n << " threads";
  }
}

TEST_P(AttentionTest, DoesNotDependOnTheRestOfTheBatch) {
  Case other = GetParam();
  other.cached = other.cached / 2 + 41;
  other.chunk = 5;
  Sequence s = MakeSequence(GetParam());
  Sequence before = MakeSequence(other, 1), after = MakeSequence(other, 2);
  ThreadPool threads(2);
  s.Attend(threads);
  const std::vector<float> expected = s.out;
  s.out.assign(s.out.size(), -1.0f);
  Attention(0, {before.item, s.item, after.item}, s.options, threads);
  EXPECT_EQ(s.out, expected);
}

INSTANTIATE_TEST_SUITE_P(AllCases, AttentionTest, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(FullPrecision, AttentionTest,
                         ::testing::ValuesIn(testing::FullPrecisionCases()),
                         [](const auto& info) { return info.param.name; });

// What a format makes of the first tokens of a head's states [N, D], those that
// fill what it packs at once; the others stay as they are.
std::vector<float> Quantized(std::vector<float> x, const QuantFormat& format,
                             Side side, int D) {
  for (float& v : x) v = ToFloat(ToHalf(v));
  if (format.bits() == 16) return x;
  const auto codec = *MakeBlockCodec(format, side, D);
  const int64_t N = static_cast<int64_t>(x.size()) / D;
  const int64_t end = N / codec->granularity() * codec->granularity();
  for (int64_t first = 0; first < end; first += codec->block_tokens()) {
    const int n =
        static_cast<int>(std::min<int64_t>(codec->block_tokens(), end - first));
    const bool keys = side == Side::kKey;
    std::vector<float> own(n * D), read(n * D);
    const auto at = [&](int t, int d) { return keys ? d * n + t : t * D + d; };
    for (int t = 0; t < n; ++t)
      for (int d = 0; d < D; ++d) own[at(t, d)] = x[(first + t) * D + d];
    std::vector<uint32_t> block(codec->bytes().total() / 4 + 1);
    auto* bytes = reinterpret_cast<uint8_t*>(block.data());
    codec->Encode(own.data(), keys ? n : D, 0, n, bytes);
    codec->Decode(bytes, 0, n, read.data(), keys ? n : D);
    for (int t = 0; t < n; ++t)
      for (int d = 0; d < D; ++d) x[(first + t) * D + d] = read[at(t, d)];
  }
  return x;
}

// Every KV head in formats of its own, against the textbook over what each
// head's codecs alone say of its tokens.
TEST(AttentionHeadsTest, EachKvHeadIsReadInItsOwnFormats) {
  constexpr int G = 4, kGroup = 2, D = 64;
  CachePlan plan;
  LayerPlan& layer = *plan.add_layer();
  for (const QuantFormat& format :
       {PerChannel(2, 32), ThreeBitWords(), Unquantized(), PerToken(5, 32)})
    *layer.add_key_head() = format;
  for (const QuantFormat& format :
       {PerToken(4, 32), PerToken(2, 64), PerChannel(3, 40), Unquantized()})
    *layer.add_value_head() = format;
  ThreadPool threads(2);
  for (const auto& [cached, chunk] :
       {std::pair<int64_t, int64_t>{1700, 1}, {333, 1}, {333, 40}}) {
    ASSERT_OK_AND_ASSIGN(
        const auto cache,
        KvCache::Create(
            {.num_layers = 1, .num_kv_heads = G, .head_dim = D}, plan,
            std::make_shared<KeepRecent>(
                KeepRecentOptions{.order = FlushOrder::kAfterAttention}),
            std::make_shared<KeepAll>()));
    const int64_t N = cached + chunk;
    const std::vector<float> keys = Normals(N * G * D, 1);
    const std::vector<float> values = Normals(N * G * D, 2);
    const std::vector<float> queries = Normals(chunk * G * kGroup * D, 3);
    ASSERT_OK(cache->Append(0, cached, keys.data(), values.data()));
    ASSERT_OK(cache->FinishChunk(0));
    ASSERT_OK(cache->Append(0, chunk, keys.data() + cached * G * D,
                            values.data() + cached * G * D));
    std::vector<float> out(queries.size());
    const AttentionItem item{.cache = cache.get(),
                             .num_tokens = chunk,
                             .queries = queries.data(),
                             .out = out.data()};
    Attention(0, {&item, 1}, {.num_heads = G * kGroup, .scale = 1.0f / 8},
              threads);

    std::vector<float> stored[2];
    for (const Side side : {Side::kKey, Side::kValue}) {
      const std::vector<float>& x = side == Side::kKey ? keys : values;
      std::vector<float>& all = stored[side == Side::kKey ? 0 : 1];
      all.resize(x.size());
      for (int head = 0; head < G; ++head) {
        std::vector<float> own;
        for (int64_t t = 0; t < N; ++t) {
          const auto from = x.begin() + (t * G + head) * D;
          own.insert(own.end(), from, from + D);
        }
        // The chunk's own tokens are not packed yet.
        const std::vector<float> old = Quantized(
            {own.begin(), own.begin() + cached * D},
            side == Side::kKey ? layer.key_head(head) : layer.value_head(head),
            side, D);
        own = Quantized(std::move(own), Unquantized(), side, D);
        std::copy(old.begin(), old.end(), own.begin());
        for (int64_t t = 0; t < N; ++t)
          std::copy_n(own.begin() + t * D, D, all.begin() + (t * G + head) * D);
      }
    }
    std::vector<double> condition;
    const std::vector<double> expected = ReferenceAttention{
        .num_heads = G * kGroup,
        .num_kv_heads = G,
        .head_dim = D,
        .scale = 1.0 / 8}(queries, stored[0], stored[1], &condition);
    float largest = 0;
    for (float v : stored[1]) largest = std::max(largest, std::fabs(v));
    for (size_t i = 0; i < out.size(); ++i) {
      ASSERT_NEAR(out[i], expected[i],
                  std::numeric_limits<float>::epsilon() * largest *
                      (1 + condition[i / D]))
          << "head " << i / D % (G * kGroup);
    }
  }
}

double Distance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}

// int8 arithmetic takes the output from what the stored keys and values say by
// less than `limit` of what quantization has taken that from the exact output.
// Every instruction set rounds to the same integers, but for a few that
// rounding errors of floats tip over.
void ExpectInt8ErrorBelow(double limit, const Case& c) {
  Sequence s = MakeSequence(c);
  s.options.arithmetic = AttentionArithmetic::kInt8;
  const ReferenceAttention reference = ReferenceOf(c);
  std::vector<double> ignored;
  const std::vector<double> stored =
      reference(s.queries, Stored(s.cache->layer(0).keys, c.head_dim),
                Stored(s.cache->layer(0).values, c.head_dim), &ignored);
  Case exact = c;
  exact.key = exact.value = Unquantized();
  const Sequence half = MakeSequence(exact);
  const std::vector<double> unquantized =
      reference(s.queries, Stored(half.cache->layer(0).keys, c.head_dim),
                Stored(half.cache->layer(0).values, c.head_dim), &ignored);
  ThreadPool threads(1);
  std::vector<double> first;
  for (int64_t target : testing::InstructionSets()) {
    const Forced forced(target);
    s.Attend(threads);
    const std::vector<double> out(s.out.begin(), s.out.end());
    const double error = Distance(out, stored);
    const double share = error / Distance(stored, unquantized);
    EXPECT_LT(share, limit) << hwy::TargetName(target);
    EXPECT_GT(share, 1e-4) << "computed in float";
    if (first.empty()) first = out;
    EXPECT_LT(Distance(out, first), 0.3 * error) << hwy::TargetName(target);
  }
}

TEST(AttentionInt8Test, ErrorIsASmallShareOfTheQuantizationError) {
  const double kLimit[] = {0, 0, 1.0 / 20, 1.0 / 10, 1.0 / 5};
  for (int head_dim : {64, 128}) {
    for (int group : {1, 3, 8}) {
      for (int bits : {2, 3, 4}) {
        for (bool swapped : {false, true}) {
          SCOPED_TRACE(::testing::Message()
                       << "head_dim " << head_dim << ", " << group << " rows, "
                       << bits << " bits, axes swapped: " << swapped);
          ExpectInt8ErrorBelow(
              kLimit[bits],
              {.name = "",
               .kv_heads = 2,
               .group = group,
               .head_dim = head_dim,
               .cached = 600,
               .key = swapped ? PerToken(bits, 32) : PerChannel(bits, 32),
               .value = swapped ? PerChannel(bits, 32) : PerToken(bits, 32)});
        }
      }
    }
  }
}

// One head over 4-bit keys and values [n, kHeadDim], the last token the chunk.
struct OneHead {
  static constexpr int kHeadDim = 64;
  static constexpr float kScale = 1.0f / 8;

  void Append(const std::vector<float>& keys,
              const std::vector<float>& values) {
    CachePlan plan;
    *plan.add_layer()->mutable_key() = PerChannel(4, 32);
    *plan.mutable_layer(0)->mutable_value() = PerToken(4, 32);
    ASSERT_OK_AND_ASSIGN(
        cache, KvCache::Create(
                   {.num_layers = 1, .num_kv_heads = 1, .head_dim = kHeadDim},
                   plan, std::make_shared<KeepRecent>(KeepRecentOptions{}),
                   std::make_shared<KeepAll>()));
    const int64_t before = static_cast<int64_t>(keys.size()) / kHeadDim - 1;
    ASSERT_OK(cache->Append(0, before, keys.data(), values.data()));
    ASSERT_OK(cache->FinishChunk(0));
    ASSERT_OK(cache->Append(0, 1, keys.data() + before * kHeadDim,
                            values.data() + before * kHeadDim));
  }
  // In integers.
  std::vector<double> Attend(const std::vector<float>& queries) const {
    std::vector<float> out(kHeadDim);
    const AttentionItem item{.cache = cache.get(),
                             .num_tokens = 1,
                             .queries = queries.data(),
                             .out = out.data()};
    ThreadPool threads(1);
    Attention(0, {&item, 1},
              {.num_heads = 1,
               .scale = kScale,
               .arithmetic = AttentionArithmetic::kInt8},
              threads);
    return {out.begin(), out.end()};
  }
  std::vector<double> Expected(const std::vector<float>& queries) const {
    const ReferenceAttention reference{.num_heads = 1,
                                       .num_kv_heads = 1,
                                       .head_dim = kHeadDim,
                                       .scale = kScale};
    std::vector<double> ignored;
    return reference(queries, Stored(cache->layer(0).keys, kHeadDim),
                     Stored(cache->layer(0).values, kHeadDim), &ignored);
  }

  std::unique_ptr<KvCache> cache;
};

// A later tile whose scores lie 2^-117 to 2^-129 below the first one's: the
// largest weights are near the least float, whose inverse is none, and some are
// 0.
TEST(AttentionInt8Test, WeightsNearTheLeastFloatStayNumbers) {
  // Tokens of the first tile, and of that one.
  constexpr int kHeadDim = OneHead::kHeadDim, kFirst = kPackedTile,
                kTokens = kFirst + 129;
  std::vector<float> keys(kTokens * kHeadDim);
  for (int t = 0; t < kTokens; ++t)
    for (int d = 0; d < kHeadDim; ++d)
      keys[t * kHeadDim + d] =
          t < kFirst ? 1.0f : -1.0f + 0.1f * static_cast<float>(t % 3 - 1);
  const std::vector<float> values = Normals(kTokens * kHeadDim, 3);
  OneHead head;
  ASSERT_NO_FATAL_FAILURE(head.Append(keys, values));
  // Scores in base 2: 62 and about -62.
  const std::vector<float> queries(kHeadDim, 62 / (8 * 1.4427f));
  for (int64_t target : testing::InstructionSets()) {
    const Forced forced(target);
    const std::vector<double> out = head.Attend(queries);
    for (int d = 0; d < kHeadDim; ++d) {
      double mean = 0;  // of the first tile's values
      for (int t = 0; t < kFirst; ++t)
        mean += values[t * kHeadDim + d] / kFirst;
      EXPECT_NEAR(out[d], mean, 0.05) << hwy::TargetName(target);
    }
  }
}

// An attention sink: a token with nearly all of the weight and next to no
// value, whose scale is the least one of the run. The others' small weights
// times their large scales are what the output consists of.
TEST(AttentionInt8Test, TokensBesideASinkKeepTheirWeights) {
  constexpr int kHeadDim = OneHead::kHeadDim, kTokens = 513;
  std::vector<float> keys = Normals(kTokens * kHeadDim, 5);
  std::vector<float> values = Normals(kTokens * kHeadDim, 6);
  for (int d = 0; d < kHeadDim; ++d) {
    keys[d] = 4;  // the sink
    values[d] *= 1e-3f;
  }
  OneHead head;
  ASSERT_NO_FATAL_FAILURE(head.Append(keys, values));
  const std::vector<float> queries(kHeadDim, 0.33f);
  const std::vector<double> expected = head.Expected(queries);
  const std::vector<double> nothing(kHeadDim);
  for (int64_t target : testing::InstructionSets()) {
    const Forced forced(target);
    EXPECT_LT(Distance(head.Attend(queries), expected),
              0.03 * Distance(expected, nothing))
        << hwy::TargetName(target);
  }
}

TEST(AttentionInt8Test, FormatsWithoutAnIntegerKernelAreComputedInFloat) {
  for (const Case& c : Cases()) {
    if (c.key.bits() <= 4 || c.value.bits() <= 4) continue;
    Sequence s = MakeSequence(c);
    ThreadPool threads(1);
    s.Attend(threads);
    const std::vector<float> expected = s.out;
    s.options.arithmetic = AttentionArithmetic::kInt8;
    s.Attend(threads);
    EXPECT_EQ(s.out, expected) << c.name;
  }
}

TEST(PackedKernelNameTest, SaysWhatComputes) {
  const auto name = [](const QuantFormat& format,
                       AttentionArithmetic arithmetic) {
    return PackedKernelName(**MakeBlockCodec(format, Side::kKey, 64),
                            arithmetic);
  };
  const auto kFloat = AttentionArithmetic::kFloat;
  const auto kInt8 = AttentionArithmetic::kInt8;
  EXPECT_EQ(name(PerChannel(2, 32), kFloat), "float");
  EXPECT_EQ(name(PerChannel(2, 32), kInt8), "int8");
  EXPECT_EQ(name(PerChannel(8, 32), kInt8), "float");
  EXPECT_EQ(name(ThreeBitWords(), kInt8), "float");
  EXPECT_EQ(name(PerChannel(5, 32), kInt8), "float, decoded first");
  EXPECT_EQ(name(PerChannel(2, 40), kFloat), "float, decoded first");
}

TEST(AttentionBatchTest, AnEmptyBatchIsNoWork) {
  ThreadPool threads(2);
  Attention(0, {}, {.num_heads = 1, .scale = 1}, threads);
}

}  // namespace
}  // namespace kvmix
