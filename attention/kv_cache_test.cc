#include "attention/kv_cache.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "attention/counting_resource.h"
#include "attention/kv_cache_layer.h"
#include "attention/test_policies.h"
#include "gmock/gmock.h"
#include "kvmix/base/check.h"
#include "kvmix/base/random.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::testing::AllOf;
using testing::CountingResource;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::KeepAll;
using testing::KeepRecent;
using testing::KeepRecentOptions;
using testing::StatusIs;

QuantFormat Format(int bits, QuantFormat::Axis axis, int group_size) {
  QuantFormat format;
  format.set_bits(bits);
  if (bits == 16) return format;
  format.set_quantizer("group_affine");
  format.set_axis(axis);
  format.set_group_size(group_size);
  if (bits == 3 && group_size == 11)
    format.set_packing(QuantFormat::KVMIX_3BIT_11);
  return format;
}
QuantFormat Keys(int bits, int group_size = 32) {
  return Format(bits, QuantFormat::PER_CHANNEL, group_size);
}
QuantFormat Values(int bits, int group_size = 32) {
  return Format(bits, QuantFormat::PER_TOKEN, group_size);
}

CachePlan Plan(const std::vector<std::pair<QuantFormat, QuantFormat>>& layers) {
  CachePlan plan;
  for (const auto& [key, value] : layers) {
    LayerPlan* layer = plan.add_layer();
    *layer->mutable_key() = key;
    *layer->mutable_value() = value;
  }
  return plan;
}

constexpr int kHeads = 2, kHeadDim = 64;

CacheShape Shape(const CachePlan& plan) {
  return {.num_layers = plan.layer_size(),
          .num_kv_heads = kHeads,
          .head_dim = kHeadDim};
}

std::unique_ptr<KvCache> Make(
    const CachePlan& plan, const KeepRecentOptions& options = {},
    std::pmr::memory_resource* memory = std::pmr::get_default_resource()) {
  auto cache =
      KvCache::Create(Shape(plan), plan, std::make_shared<KeepRecent>(options),
                      std::make_shared<KeepAll>(), memory);
  EXPECT_OK(cache);
  return *std::move(cache);
}

// Token t of every layer is row t of these, [T, G, D].
struct Tokens {
  std::vector<float> keys, values;
  explicit Tokens(int64_t n) {
    CounterRandom random(11, 0);
    for (auto* x : {&keys, &values})
      for (int64_t i = 0; i < n * kHeads * kHeadDim; ++i)
        x->push_back(static_cast<float>(random.Normal()));
  }
  const float* key(int64_t t) const {
    return keys.data() + t * kHeads * kHeadDim;
  }
  const float* value(int64_t t) const {
    return values.data() + t * kHeads * kHeadDim;
  }
};

void AppendChunk(KvCache& cache, const Tokens& tokens, int64_t n) {
  for (int layer = 0; layer < cache.shape().num_layers; ++layer) {
    const int64_t t = cache.num_tokens(layer);
    ASSERT_OK(cache.Append(layer, n, tokens.key(t), tokens.value(t)));
    ASSERT_OK(cache.FinishChunk(layer));
  }
}

// Tokens [first, first + count) of a stream, as rows.
std::vector<float> RowsOf(const KvStream& stream, int64_t first,
                          int64_t count) {
  const bool keys = stream.side() == Side::kKey;
  std::vector<float> x(count * kHeadDim), rows(x.size());
  stream.Read(first, count, x.data(), keys ? count : kHeadDim);
  for (int64_t t = 0; t < count; ++t)
    for (int d = 0; d < kHeadDim; ++d)
      rows[t * kHeadDim + d] = keys ? x[d * count + t] : x[t * kHeadDim + d];
  return rows;
}

std::vector<std::vector<uint8_t>> WholeBlocks(const KvStream& stream,
                                              int64_t sinks) {
  std::vector<std::vector<uint8_t>> blocks;
  const int64_t tokens = stream.codec()->block_tokens();
  for (int64_t t = sinks;
       t + tokens <= stream.num_tokens() - stream.window_tokens();
       t += tokens) {
    const KvStream::Piece piece = stream.PieceAt(t);
    EXPECT_EQ(piece.first, 0);
    blocks.emplace_back(piece.block,
                        piece.block + stream.codec()->bytes().total());
  }
  return blocks;
}

const std::vector<std::pair<QuantFormat, QuantFormat>> kMixedLayers = {
    {Keys(2), Values(2)},
    {Keys(3), Values(4)},
    {Keys(3, 11), Values(16)},
    {Keys(16), Values(3, 16)},
    {Keys(8, 50), Values(1, 64)},
    {Format(4, QuantFormat::PER_TOKEN, 32),
     Format(4, QuantFormat::PER_CHANNEL, 32)}};

TEST(KvCacheTest, LedgerEqualsWhatWasAllocated) {
  CountingResource memory;
  const Tokens tokens(1200);
  CounterRandom random(1, 1);
  for (const KeepRecentOptions& options :
       {KeepRecentOptions{.ratio = 0.1, .sinks = 4},
        KeepRecentOptions{.keep = 40, .order = FlushOrder::kAfterAttention},
        KeepRecentOptions{.sinks = 70}, KeepRecentOptions{.step = 32}}) {
    auto cache = Make(Plan(kMixedLayers), options, &memory);
    ASSERT_EQ(cache->ledger().total(), memory.allocated);
    while (cache->num_tokens(0) < 1000) {
      const int64_t n = random.Below(2) ? 1 : 1 + random.Below(150);
      AppendChunk(*cache, tokens, n);
      ASSERT_EQ(cache->ledger().total(), memory.allocated);
      ASSERT_GE(cache->ledger().key.slack, 0);
      ASSERT_GE(cache->ledger().value.slack, 0);
    }
    cache.reset();
    ASSERT_EQ(memory.allocated, 0);
  }
}

// Each of two KV heads in each format of kMixedLayers, keys and values apart.
CachePlan MixedHeads() {
  CachePlan plan;
  const int n = static_cast<int>(kMixedLayers.size());
  for (int i = 0; i < n; ++i) {
    LayerPlan& layer = *plan.add_layer();
    *layer.add_key_head() = kMixedLayers[i].first;
    *layer.add_key_head() = kMixedLayers[(i + 1) % n].first;
    *layer.add_value_head() = kMixedLayers[(i + 2) % n].second;
    *layer.add_value_head() = kMixedLayers[i].second;
  }
  return plan;
}

// In everything that a stream has, it is that of a cache of its head alone.
TEST(KvCacheTest, AKvHeadIsStoredAsIfItWereAlone) {
  const CachePlan plan = MixedHeads();
  const Tokens tokens(700);
  const KeepRecentOptions options{.ratio = 0.1, .keep = 9, .sinks = 4};
  CountingResource memory;
  const auto cache = Make(plan, options, &memory);
  const std::vector<int64_t> chunks = {1, 128, 1, 1, 300, 64, 1, 57};
  for (int64_t n : chunks) AppendChunk(*cache, tokens, n);
  EXPECT_EQ(cache->ledger().total(), memory.allocated);
  for (int layer = 0; layer < plan.layer_size(); ++layer) {
    for (int head = 0; head < kHeads; ++head) {
      CachePlan own;
      *own.add_layer()->mutable_key() = plan.layer(layer).key_head(head);
      *own.mutable_layer(0)->mutable_value() =
          plan.layer(layer).value_head(head);
      ASSERT_OK_AND_ASSIGN(
          const auto alone,
          KvCache::Create(
              {.num_layers = 1, .num_kv_heads = 1, .head_dim = kHeadDim}, own,
              std::make_shared<KeepRecent>(options),
              std::make_shared<KeepAll>()));
      int64_t t = 0;
      for (int64_t n : chunks) {
        std::vector<float> keys, values;
        for (; n > 0; --n, ++t) {
          const float* key = tokens.key(t) + head * kHeadDim;
          const float* value = tokens.value(t) + head * kHeadDim;
          keys.insert(keys.end(), key, key + kHeadDim);
          values.insert(values.end(), value, value + kHeadDim);
        }
        ASSERT_OK(alone->Append(0, static_cast<int64_t>(keys.size()) / kHeadDim,
                                keys.data(), values.data()));
        ASSERT_OK(alone->FinishChunk(0));
      }
      const auto expect_same = [&](const KvStream& a, const KvStream& b) {
        SCOPED_TRACE(::testing::Message() << "layer " << layer << " head "
                                          << head << " " << SideName(a.side()));
        EXPECT_EQ(a.window_tokens(), b.window_tokens());
        EXPECT_EQ(a.packed_tokens(), b.packed_tokens());
        EXPECT_EQ(RowsOf(a, 0, t), RowsOf(b, 0, t));
        ASSERT_EQ(a.codec() == nullptr, b.codec() == nullptr);
        if (a.codec() != nullptr) {
          EXPECT_EQ(WholeBlocks(a, 4), WholeBlocks(b, 4));
        }
      };
      expect_same(cache->layer(layer).keys[head], alone->layer(0).keys[0]);
      expect_same(cache->layer(layer).values[head], alone->layer(0).values[0]);
    }
  }
}

TEST(KvCacheTest, LedgerIsRightInTheMiddleOfAChunkToo) {
  CountingResource memory;
  const Tokens tokens(400);
  auto cache = Make(Plan({{Keys(2), Values(2)}}), {}, &memory);
  ASSERT_OK(cache->Append(0, 300, tokens.key(0), tokens.value(0)));
  EXPECT_EQ(cache->ledger().total(), memory.allocated);
  EXPECT_EQ(cache->ledger().key.packed_tokens, 0);
  const int64_t before = memory.allocated;
  ASSERT_OK(cache->FinishChunk(0));
  EXPECT_EQ(cache->ledger().total(), memory.allocated);
  EXPECT_LT(memory.allocated, before / 3);  // the window is really released
}

TEST(KvCacheTest, LedgerBillsEveryTokenByItsCause) {
  const Tokens tokens(200);
  auto cache = Make(Plan({{Keys(2), Values(4)}}), {.sinks = 8});
  AppendChunk(*cache, tokens, 8 + 100);
  const MemoryLedger ledger = cache->ledger();
  EXPECT_EQ(ledger.key.packed_tokens, kHeads * 96);
  EXPECT_EQ(ledger.key.full_precision_tokens, kHeads * (8 + 4));
  EXPECT_EQ(ledger.key.codes, kHeads * 96 * kHeadDim * 2 / 8);
  EXPECT_EQ(ledger.key.scales, kHeads * 96 * kHeadDim / 32 * 2);
  EXPECT_EQ(ledger.key.zeros, ledger.key.scales);
  EXPECT_EQ(ledger.key.sinks, kHeads * 8 * kHeadDim * 2);
  EXPECT_EQ(ledger.key.window, kHeads * 4 * kHeadDim * 2);
  EXPECT_EQ(ledger.value.packed_tokens, kHeads * 100);
  EXPECT_EQ(ledger.value.codes, kHeads * 100 * kHeadDim * 4 / 8);
  EXPECT_EQ(ledger.value.scales, kHeads * 100 * kHeadDim / 32 * 2);
  EXPECT_EQ(ledger.value.window, 0);
  // In the last block 28 of 32 tokens are free; its page is full.
  EXPECT_EQ(ledger.value.slack, kHeads * 28 * kHeadDim * 5 / 8);
}

TEST(KvCacheTest, SixteenBitsStayInTheWindow) {
  const Tokens tokens(400);
  auto cache = Make(Plan({{Keys(16), Values(2)}}));
  AppendChunk(*cache, tokens, 320);
  const MemoryLedger ledger = cache->ledger();
  EXPECT_EQ(ledger.key.unquantized_tokens, kHeads * 320);
  EXPECT_EQ(ledger.value.unquantized_tokens, 0);
  EXPECT_EQ(ledger.key.bytes(), kHeads * 320 * kHeadDim * 2);
  EXPECT_EQ(ledger.key.window, ledger.key.bytes());
  EXPECT_EQ(ledger.value.window, 0);
}

TEST(KvCacheTest, PackedBytesDoNotDependOnHowTokensArrive) {
  const int64_t kTokens = 500;
  const Tokens tokens(kTokens);
  const CachePlan plan = Plan(kMixedLayers);
  for (const KeepRecentOptions& options :
       {KeepRecentOptions{.sinks = 5}, KeepRecentOptions{.ratio = 0.2},
        KeepRecentOptions{.keep = 7, .order = FlushOrder::kAfterAttention}}) {
    auto at_once = Make(plan, options);
    AppendChunk(*at_once, tokens, kTokens);
    for (int64_t step : {1, 13, 64}) {
      auto cache = Make(plan, options);
      while (cache->num_tokens(0) < kTokens)
        AppendChunk(*cache, tokens,
                    std::min(step, kTokens - cache->num_tokens(0)));
      for (int i = 0; i < plan.layer_size(); ++i) {
        for (int head = 0; head < kHeads; ++head) {
          for (const auto member :
               {&KvCache::Layer::keys, &KvCache::Layer::values}) {
            const KvStream& a = (at_once->layer(i).*member)[head];
            const KvStream& b = (cache->layer(i).*member)[head];
            if (a.codec() == nullptr) continue;
            const int64_t packed =
                std::min(kTokens - options.sinks - a.window_tokens(),
                         kTokens - options.sinks - b.window_tokens());
            ASSERT_GT(packed, 100);
            EXPECT_EQ(RowsOf(a, options.sinks, packed),
                      RowsOf(b, options.sinks, packed));
            auto blocks_a = WholeBlocks(a, options.sinks);
            auto blocks_b = WholeBlocks(b, options.sinks);
            const size_t common = std::min(blocks_a.size(), blocks_b.size());
            blocks_a.resize(common), blocks_b.resize(common);
            EXPECT_GT(common, 1u);
            EXPECT_EQ(blocks_a, blocks_b);
          }
        }
      }
    }
  }
}

TEST(KvCacheTest, EveryTokenIsStoredInOrderAndNearItsValue) {
  const Tokens tokens(300);
  auto cache = Make(Plan({{Keys(8), Values(8)}}), {.keep = 20, .sinks = 3});
  for (int64_t n : {1, 130, 1, 1, 167}) AppendChunk(*cache, tokens, n);
  for (int head = 0; head < kHeads; ++head) {
    const KvStream& keys = cache->layer(0).keys[head];
    ASSERT_EQ(keys.num_tokens(), 300);
    const std::vector<float> rows = RowsOf(keys, 0, 300);
    for (int64_t t = 0; t < 300; ++t)
      for (int d = 0; d < kHeadDim; ++d)
        ASSERT_NEAR(rows[t * kHeadDim + d], tokens.key(t)[head * kHeadDim + d],
                    keys.PieceAt(t).numbers ? 2e-3 : 2e-2);
  }
}

TEST(KvCacheTest, SinkTokensAreNeverQuantized) {
  const Tokens tokens(600);
  const int64_t kSinks = 37;
  auto cache = Make(Plan({{Keys(2), Values(2)}}), {.sinks = kSinks});
  for (int64_t n : {1, 10, 500, 1, 40}) AppendChunk(*cache, tokens, n);
  for (int head = 0; head < kHeads; ++head) {
    const KvStream& keys = cache->layer(0).keys[head];
    for (int64_t t = 0; t < kSinks; ++t) {
      const KvStream::Piece piece = keys.PieceAt(t);
      ASSERT_NE(piece.numbers, nullptr);
      const auto* halves = reinterpret_cast<const Half*>(piece.numbers);
      for (int d = 0; d < kHeadDim; ++d)
        EXPECT_EQ(halves[d * piece.stride].bits,
                  ToHalf(tokens.key(t)[head * kHeadDim + d]).bits);
    }
    EXPECT_EQ(keys.PieceAt(kSinks).numbers, nullptr);
  }
}

// Sinks and window hold what the plan says, to the bit and to the byte; codes
// are those of the numbers rounded so.
TEST(KvCacheTest, FullPrecisionIsWhatThePlanSays) {
  const Tokens tokens(300);
  constexpr int64_t kSinks = 37;
  const auto rounded = [](CachePlan::FullPrecision type, float x) {
    return type == CachePlan::HALF       ? ToFloat(ToHalf(x))
           : type == CachePlan::BFLOAT16 ? ToFloat(ToBFloat16(x))
                                         : x;
  };
  for (const CachePlan::FullPrecision type :
       {CachePlan::HALF, CachePlan::BFLOAT16, CachePlan::FLOAT}) {
    SCOPED_TRACE(CachePlan::FullPrecision_Name(type));
    CachePlan plan = Plan({{Keys(2), Values(2)}, {Keys(16), Values(16)}});
    plan.set_full_precision(type);
    CountingResource memory;
    const auto cache = Make(plan, {.keep = 40, .sinks = kSinks}, &memory);
    Tokens before = tokens;  // rounded before they enter, to half or more
    for (auto* x : {&before.keys, &before.values})
      for (float& v : *x) v = rounded(type, v);
    CachePlan exact = plan;
    exact.set_full_precision(CachePlan::FLOAT);
    const auto same = Make(exact, {.keep = 40, .sinks = kSinks});
    for (int64_t n : {1, 130, 1, 1, 167}) {
      AppendChunk(*cache, tokens, n);
      AppendChunk(*same, before, n);
    }
    for (int layer : {0, 1}) {
      for (int head = 0; head < kHeads; ++head) {
        EXPECT_EQ(RowsOf(cache->layer(layer).keys[head], 0, 300),
                  RowsOf(same->layer(layer).keys[head], 0, 300));
        EXPECT_EQ(RowsOf(cache->layer(layer).values[head], 0, 300),
                  RowsOf(same->layer(layer).values[head], 0, 300));
      }
    }
    const KvStream& keys = cache->layer(1).keys[1];
    const std::vector<float> rows = RowsOf(keys, 0, 300);
    for (int64_t t = 0; t < 300; ++t)
      for (int d = 0; d < kHeadDim; ++d)
        ASSERT_EQ(rows[t * kHeadDim + d],
                  rounded(type, tokens.key(t)[kHeadDim + d]));
    const MemoryLedger ledger = cache->ledger();
    EXPECT_EQ(ledger.total(), memory.allocated);
    EXPECT_EQ(ledger.key.sinks, 2 * kHeads * kSinks * kHeadDim *
                                    (type == CachePlan::FLOAT ? 4 : 2));
  }
}

TEST(KvCacheTest, BFloat16AndFloatHoldNumbersThatHalfCannot) {
  Tokens tokens(1);
  const auto append = [&](CachePlan::FullPrecision type, int bits, float x) {
    CachePlan plan = Plan({{Keys(bits), Values(16)}});
    plan.set_full_precision(type);
    tokens.keys[0] = x;
    return Make(plan)->Append(0, 1, tokens.key(0), tokens.value(0));
  };
  EXPECT_OK(append(CachePlan::BFLOAT16, 16, 1e30f));
  EXPECT_OK(append(CachePlan::FLOAT, 16, 3.4e38f));
  EXPECT_THAT(append(CachePlan::BFLOAT16, 16, 3.4e38f),
              StatusIs(absl::StatusCode::kDataLoss,
                       HasSubstr("in the range of bfloat16")));
  EXPECT_THAT(append(CachePlan::HALF, 16, 1e5f),
              StatusIs(absl::StatusCode::kDataLoss,
                       HasSubstr("full_precision: BFLOAT16")));
  // Scales and zero points are halves.
  EXPECT_THAT(
      append(CachePlan::FLOAT, 2, 1e5f),
      StatusIs(absl::StatusCode::kDataLoss, HasSubstr("in the range of half")));
}

TEST(KvCacheTest, RefusesFullPrecisionThatIsNone) {
  CachePlan plan = Plan({{Keys(2), Values(2)}});
  plan.set_full_precision(static_cast<CachePlan::FullPrecision>(7));
  EXPECT_THAT(KvCache::Create(Shape(plan), plan,
                              std::make_shared<KeepRecent>(KeepRecentOptions{}),
                              std::make_shared<KeepAll>()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("full_precision is 7")));
}

TEST(KvCacheTest, KeysAndValuesHaveBoundariesOfTheirOwn) {
  const Tokens tokens(200);
  auto cache = Make(Plan({{Keys(2), Values(2)}, {Keys(3, 11), Values(16)}}));
  AppendChunk(*cache, tokens, 100);
  EXPECT_EQ(cache->layer(0).keys[0].window_tokens(), 100 - 96);
  EXPECT_EQ(cache->layer(0).values[0].window_tokens(), 0);
  EXPECT_EQ(cache->layer(1).keys[0].window_tokens(), 100 - 99);
  EXPECT_EQ(cache->layer(1).values[0].window_tokens(), 100);
}

std::vector<int64_t> WindowTrace(const QuantFormat& key, double ratio,
                                 int64_t prefill, int steps) {
  const Tokens tokens(prefill + steps);
  auto cache = Make(Plan({{key, Values(16)}}), {.ratio = ratio});
  AppendChunk(*cache, tokens, prefill);
  std::vector<int64_t> trace = {cache->layer(0).keys[0].window_tokens()};
  for (int i = 0; i < steps; ++i) {
    AppendChunk(*cache, tokens, 1);
    trace.push_back(cache->layer(0).keys[0].window_tokens());
  }
  return trace;
}

// Recent pivotal context (KVmix): the window decays geometrically, step by
// step.
TEST(KvCacheTest, WindowOfARatioPolicyDecaysAsPublished) {
  EXPECT_THAT(WindowTrace(Keys(2), 0.1, 4096, 4),
              ElementsAre(416, 65, 34, 3, 4));
  EXPECT_THAT(WindowTrace(Keys(3), 0.2, 4096, 3),
              ElementsAre(832, 193, 66, 35));
  EXPECT_THAT(WindowTrace(Keys(3, 11), 0.2, 4096, 4),
              ElementsAre(829, 170, 39, 18, 8));
}

TEST(KvCacheTest, ADecodeStepQuantizesBeforeOrAfterAttentionAsThePolicySays) {
  const Tokens tokens(40);
  for (const FlushOrder order :
       {FlushOrder::kBeforeAttention, FlushOrder::kAfterAttention}) {
    auto cache = Make(Plan({{Keys(2), Values(2)}}), {.order = order});
    const bool before = order == FlushOrder::kBeforeAttention;
    ASSERT_OK(cache->Append(0, 31, tokens.key(0), tokens.value(0)));
    // A longer chunk always attends first.
    EXPECT_EQ(cache->layer(0).keys[0].window_tokens(), 31);
    ASSERT_OK(cache->FinishChunk(0));
    ASSERT_OK(cache->Append(0, 1, tokens.key(31), tokens.value(31)));
    EXPECT_EQ(cache->layer(0).keys[0].window_tokens(), before ? 0 : 32);
    ASSERT_OK(cache->FinishChunk(0));
    EXPECT_EQ(cache->layer(0).keys[0].window_tokens(), 0);
  }
}

TEST(KvCacheTest, RefusesNumbersThatHalfCannotHold) {
  auto cache = Make(Plan({{Keys(2), Values(2)}, {Keys(2), Values(2)}}));
  Tokens tokens(5);
  const auto data_loss = [](const char* text) {
    return StatusIs(absl::StatusCode::kDataLoss, HasSubstr(text));
  };
  tokens.values[(3 * kHeads + 1) * kHeadDim + 7] =
      std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(cache->Append(1, 5, tokens.key(0), tokens.value(0)),
              data_loss("layer 1 values: token 3 of the chunk, KV head 1, "
                        "channel 7 is nan"));
  EXPECT_EQ(cache->num_tokens(1), 0);  // nothing was appended
  tokens.keys[0] = -std::numeric_limits<float>::infinity();
  EXPECT_THAT(
      cache->Append(0, 5, tokens.key(0), tokens.value(0)),
      data_loss("layer 0 keys: token 0 of the chunk, KV head 0, channel "
                "0 is -inf"));
  tokens.keys[0] = 65520;  // rounds to infinity
  EXPECT_THAT(cache->Append(0, 5, tokens.key(0), tokens.value(0)),
              data_loss("65520"));
  tokens.keys[0] = 65519;  // rounds to 65504
  EXPECT_OK(cache->Append(0, 3, tokens.key(0), tokens.value(0)));
}

TEST(KvCacheTest, AChunkThatWasNotFinishedRefusesTheNext) {
  auto cache = Make(Plan({{Keys(2), Values(2)}}));
  const Tokens tokens(2);
  ASSERT_OK(cache->Append(0, 1, tokens.key(0), tokens.value(0)));
  EXPECT_THAT(cache->Append(0, 1, tokens.key(1), tokens.value(1)),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("layer 0: the last chunk is not finished")));
}

TEST(KvCacheTest, MemoryThatRunsOutIsAnErrorAndLeavesNothingBehind) {
  const Tokens tokens(200);
  CountingResource memory;
  // Whatever allocation fails: bookkeeping, window pages, packed pages.
  for (int64_t limit = 0; limit < 120'000; limit += 3'000) {
    memory.limit = limit;
    auto cache = KvCache::Create(
        Shape(Plan({{Keys(2), Values(2)}})), Plan({{Keys(2), Values(2)}}),
        std::make_shared<KeepRecent>(KeepRecentOptions{.sinks = 4}),
        std::make_shared<KeepAll>(), &memory);
    absl::Status status = cache.status();
    if (status.ok())
      status = (*cache)->Append(0, 200, tokens.key(0), tokens.value(0));
    if (status.ok()) {
      EXPECT_EQ((*cache)->ledger().total(), memory.allocated);
      status = (*cache)->FinishChunk(0);
    }
    if (!status.ok()) {
      EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted,
                                   HasSubstr("memory")));
    }
    if (cache.ok()) cache->reset();
    EXPECT_EQ(memory.allocated, 0);
  }
}

absl::Status CreateError(const CachePlan& plan, const CacheShape& shape,
                         std::shared_ptr<const RecencyPolicy> recency) {
  return KvCache::Create(shape, plan, std::move(recency),
                         std::make_shared<KeepAll>())
      .status();
}

TEST(KvCacheTest, RefusesPlansThatDoNotFitAndSaysWhere) {
  const auto recency = std::make_shared<KeepRecent>(KeepRecentOptions{});
  const auto error = [&](const CachePlan& plan) {
    return CreateError(plan, Shape(plan), recency);
  };
  const auto invalid = [](const char* text) {
    return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(text));
  };
  const CachePlan good = Plan({{Keys(2), Values(2)}, {Keys(2), Values(2)}});
  CacheShape shape = Shape(good);
  shape.num_layers = 3;
  EXPECT_THAT(CreateError(good, shape, recency),
              invalid("the cache plan has 2 layers but the model has 3"));
  for (int head_dim : {0, -8, 12, 1 << 30}) {
    shape = Shape(good);
    shape.head_dim = head_dim;
    EXPECT_THAT(CreateError(good, shape, recency), invalid("head_dim"));
  }
  shape = Shape(good);
  shape.num_kv_heads = 0;
  EXPECT_THAT(CreateError(good, shape, recency), invalid("num_kv_heads is 0"));

  CachePlan plan = good;
  plan.mutable_layer(1)->clear_value();
  EXPECT_THAT(error(plan), invalid("layer 1 values: the plan has no format"));
  plan = good;
  plan.mutable_layer(0)->mutable_value()->set_group_size(48);
  EXPECT_THAT(error(plan),
              invalid("layer 0 values: group_size is 48 but must divide"));
  plan = good;
  plan.mutable_layer(1)->mutable_key()->set_bits(16);
  EXPECT_THAT(error(plan), invalid("layer 1 keys: bits is 16"));
  plan = MixedHeads();
  plan.mutable_layer(3)->mutable_value_head(1)->set_group_size(48);
  EXPECT_THAT(error(plan),
              invalid("layer 3 values: head 1: group_size is 48 but must"));
  plan.mutable_layer(2)->mutable_key_head()->RemoveLast();
  EXPECT_THAT(error(plan),
              invalid("layer[2] key_head has 1 formats but the model has 2 KV "
                      "heads; give one for each, or key for all"));
  plan = good;
  plan.mutable_layer(1)->mutable_key()->set_quantizer("gone");
  EXPECT_THAT(error(plan),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("layer 1 keys: quantizer \"gone\" "
                                 "is not linked")));
}

class RefusesValues final : public RecencyPolicy {
 public:
  FlushOrder flush_order() const override {
    return FlushOrder::kBeforeAttention;
  }
  absl::Status Validate(const WindowState& stream) const override {
    if (stream.side == Side::kKey) return absl::OkStatus();
    return absl::InvalidArgumentError("no values, please");
  }
  int64_t TokensToQuantize(const WindowState& state) const override {
    return state.window_tokens;  // not a multiple of 32
  }
};

TEST(KvCacheTest, NamesTheStreamThatThePolicyRefuses) {
  const CachePlan plan = Plan({{Keys(2), Values(16)}, {Keys(2), Values(2)}});
  EXPECT_THAT(CreateError(plan, Shape(plan), std::make_shared<RefusesValues>()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "layer 1 values: no values, please"));
}

TEST(KvCacheTest, APolicyThatCountsWronglyIsAnError) {
  const CachePlan plan = Plan({{Keys(2), Values(16)}});
  ASSERT_OK_AND_ASSIGN(
      auto cache,
      KvCache::Create(Shape(plan), plan, std::make_shared<RefusesValues>(),
                      std::make_shared<KeepAll>()));
  const Tokens tokens(33);
  ASSERT_OK(cache->Append(0, 33, tokens.key(0), tokens.value(0)));
  EXPECT_THAT(cache->FinishChunk(0),
              StatusIs(absl::StatusCode::kInternal,
                       AllOf(HasSubstr("layer 0 keys"),
                             HasSubstr("quantize 33 tokens of a window of 33 "
                                       "with granularity 32"))));
}

}  // namespace
}  // namespace kvmix
