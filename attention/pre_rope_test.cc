// Keys that are packed as they were before RoPE (quantizer "pre_rope"), in the
// cache, under attention and before estimators, against a plain loop in double
// that has its own angles.
#include <cmath>
#include <memory>
#include <vector>

#include "attention/attention.h"
#include "attention/attention_reference.h"
#include "attention/kv_cache_layer.h"
#include "attention/packed_attention.h"
#include "attention/test_policies.h"
#include "gmock/gmock.h"
#include "kvmix/base/half.h"
#include "kvmix/base/random.h"
#include "kvmix/base/registry.h"
#include "kvmix/base/status_matchers.h"
#include "kvmix/importance/state_quantizer.h"
#include "quant/pre_rope.pb.h"

namespace kvmix {
namespace {

using ::testing::HasSubstr;
using testing::KeepAll;
using testing::KeepRecent;
using testing::KeepRecentOptions;
using testing::StatusIs;

constexpr int kHeads = 2, kDim = 64;
constexpr int64_t kTokens = 333;

double Angle(int64_t position, int pair) {
  return static_cast<double>(position) * std::pow(10000.0, -2.0 * pair / kDim);
}

std::shared_ptr<const KeyRotation> MakeRotation() {
  return std::make_shared<const KeyRotation>(
      kDim, [](int64_t position, float* cos, float* sin) {
        for (int i = 0; i < kDim / 2; ++i) {
          cos[i] = static_cast<float>(std::cos(Angle(position, i)));
          sin[i] = static_cast<float>(std::sin(Angle(position, i)));
        }
      });
}

// A key [D], turned forwards (direction 1) or backwards (-1), in double.
template <typename T>
std::vector<double> Turned(const T* key, int64_t position, int direction) {
  std::vector<double> turned(kDim);
  for (int i = 0; i < kDim / 2; ++i) {
    const double c = std::cos(Angle(position, i));
    const double s = direction * std::sin(Angle(position, i));
    const double a = key[i], b = key[i + kDim / 2];
    turned[i] = c * a - s * b;
    turned[i + kDim / 2] = c * b + s * a;
  }
  return turned;
}

// Rows [T, G, D] of numbers that are halves already.
std::vector<float> Halves(uint64_t seed, int64_t rows = kTokens * kHeads) {
  CounterRandom random(seed, 0);
  std::vector<float> x(rows * kDim);
  for (float& v : x) v = ToFloat(ToHalf(static_cast<float>(random.Normal())));
  return x;
}

QuantFormat Affine(int bits, QuantFormat::Axis axis, int group) {
  QuantFormat format;
  format.set_quantizer("group_affine");
  format.set_bits(bits);
  format.set_axis(axis);
  format.set_group_size(group);
  return format;
}
QuantFormat PerChannel(int bits, int group = 32) {
  return Affine(bits, QuantFormat::PER_CHANNEL, group);
}

QuantFormat PreRope(const QuantFormat& inner) {
  PreRopeFormat own;
  *own.mutable_inner() = inner;
  QuantFormat format;
  format.set_quantizer("pre_rope");
  format.set_bits(inner.bits());
  format.mutable_options()->PackFrom(own);
  return format;
}

std::unique_ptr<BlockCodec> Codec(const QuantFormat& format) {
  auto codec = MakeBlockCodec(format, Side::kKey, kDim);
  EXPECT_OK(codec);
  return *std::move(codec);
}

CacheShape Shape(std::shared_ptr<const KeyRotation> rotation) {
  return {.num_layers = 1,
          .num_kv_heads = kHeads,
          .head_dim = kDim,
          .key_rotation = std::move(rotation)};
}

// Keys in `key`, values in full precision.
CachePlan PlanOf(const QuantFormat& key) {
  CachePlan plan;
  *plan.add_layer()->mutable_key() = key;
  plan.mutable_layer(0)->mutable_value()->set_bits(16);
  return plan;
}

std::unique_ptr<KvCache> MakeCache(const QuantFormat& key,
                                   const KeepRecentOptions& recency) {
  auto cache = KvCache::Create(Shape(MakeRotation()), PlanOf(key),
                               std::make_shared<KeepRecent>(recency),
                               std::make_shared<KeepAll>());
  EXPECT_OK(cache);
  return *std::move(cache);
}

void Append(KvCache& cache, const std::vector<float>& keys, int64_t chunk) {
  const int64_t row = int64_t{kHeads} * kDim;
  const int64_t tokens = static_cast<int64_t>(keys.size()) / row;
  for (int64_t t = 0; t < tokens; t += chunk) {
    const int64_t n = std::min(chunk, tokens - t);
    ASSERT_OK(cache.Append(0, n, keys.data() + t * row, keys.data() + t * row));
    ASSERT_OK(cache.FinishChunk(0));
  }
}

std::vector<float> ReadAll(const KvStream& stream) {
  std::vector<float> rows(stream.num_tokens() * kDim);
  stream.ReadTokens(0, stream.num_tokens(), rows.data());
  return rows;
}

// What a head's keys [T, D] at positions `first` on are read as after `inner`
// has packed them before RoPE; a whole number of granules.
std::vector<double> Expected(const BlockCodec& inner,
                             const std::vector<double>& keys, int64_t first) {
  const int64_t tokens = static_cast<int64_t>(keys.size()) / kDim;
  std::vector<double> read;
  for (int64_t begin = 0; begin < tokens; begin += inner.block_tokens()) {
    const int n = static_cast<int>(
        std::min<int64_t>(inner.block_tokens(), tokens - begin));
    std::vector<float> x(n * kDim), y(n * kDim);
    for (int t = 0; t < n; ++t) {
      const auto before =
          Turned(keys.data() + (begin + t) * kDim, first + begin + t, -1);
      for (int d = 0; d < kDim; ++d)
        x[d * n + t] = static_cast<float>(before[d]);
    }
    std::vector<uint32_t> block(inner.bytes().total() / 4 + 1);
    auto* bytes = reinterpret_cast<uint8_t*>(block.data());
    inner.Encode(x.data(), n, 0, n, bytes);
    inner.Decode(bytes, 0, n, y.data(), n);
    for (int t = 0; t < n; ++t) {
      std::vector<double> row(kDim);
      for (int d = 0; d < kDim; ++d) row[d] = y[d * n + t];
      const auto after = Turned(row.data(), first + begin + t, 1);
      read.insert(read.end(), after.begin(), after.end());
    }
  }
  return read;
}

// Tokens [first, last) of a head of [T, G, D].
std::vector<double> HeadRows(const std::vector<float>& keys, int head,
                             int64_t first, int64_t last) {
  std::vector<double> rows;
  for (int64_t t = first; t < last; ++t)
    for (int d = 0; d < kDim; ++d)
      rows.push_back(keys[(t * kHeads + head) * kDim + d]);
  return rows;
}

const std::vector<QuantFormat>& InnerFormats() {
  static const auto* const formats = new std::vector<QuantFormat>{
      PerChannel(3), PerChannel(2, 20),  // blocks across pages of positions
      Affine(4, QuantFormat::PER_TOKEN, 32)};
  return *formats;
}

TEST(PreRopeCacheTest, IsThePlainLoopHoweverTokensArrive) {
  const std::vector<float> keys = Halves(1);
  for (const QuantFormat& format : InnerFormats()) {
    const auto inner = Codec(format);
    for (const int64_t sinks : {0, 5}) {
      std::vector<std::vector<float>> first_read;
      for (const int64_t chunk : {kTokens, int64_t{37}, int64_t{1}}) {
        const auto cache =
            MakeCache(PreRope(format), {.keep = 7, .sinks = sinks});
        Append(*cache, keys, chunk);
        for (int head = 0; head < kHeads; ++head) {
          const KvStream& stream = cache->layer(0).keys[head];
          const int64_t packed = stream.packed_tokens();
          ASSERT_GT(packed, 300);
          ASSERT_GE(stream.window_tokens(), 7);
          const std::vector<float> read = ReadAll(stream);
          std::vector<double> expected = HeadRows(keys, head, 0, sinks);
          const auto middle = Expected(
              *inner, HeadRows(keys, head, sinks, sinks + packed), sinks);
          expected.insert(expected.end(), middle.begin(), middle.end());
          const auto window = HeadRows(keys, head, sinks + packed, kTokens);
          expected.insert(expected.end(), window.begin(), window.end());
          ASSERT_EQ(read.size(), expected.size());
          for (size_t i = 0; i < read.size(); ++i)
            ASSERT_NEAR(read[i], expected[i], 5e-6) << "token " << i / kDim;
          // The same bits however they arrived.
          if (static_cast<int>(first_read.size()) == kHeads) {
            EXPECT_EQ(read, first_read[head]);
          } else {
            first_read.push_back(read);
          }
        }
      }
    }
  }
}

TEST(PreRopeCacheTest, AnyPartIsReadAsInTheWhole) {
  const std::vector<float> keys = Halves(2);
  for (const QuantFormat& format : InnerFormats()) {
    const auto cache = MakeCache(PreRope(format), {.keep = 7, .sinks = 5});
    Append(*cache, keys, kTokens);
    const KvStream& stream = cache->layer(0).keys[1];
    const std::vector<float> all = ReadAll(stream);
    for (const int64_t first : {0, 4, 5, 40, 61, 300}) {
      const int64_t count = kTokens - first - 3;
      std::vector<float> part(count * kDim);
      stream.ReadTokens(first, count, part.data());
      for (size_t i = 0; i < part.size(); ++i)
        ASSERT_EQ(part[i], all[first * kDim + i]);
    }
  }
}

TEST(PreRopeCacheTest, TakesTheBytesOfTheInnerFormat) {
  const std::vector<float> keys = Halves(3);
  for (const QuantFormat& format : InnerFormats()) {
    const auto before = MakeCache(PreRope(format), {});
    const auto after = MakeCache(format, {});
    Append(*before, keys, 50);
    Append(*after, keys, 50);
    EXPECT_EQ(before->ledger().total(), after->ledger().total());
  }
}

TEST(PreRopeCacheTest, AttentionReadsTurnedKeys) {
  constexpr int kQueryHeads = 6, kQueries = 3;
  const std::vector<float> keys = Halves(4);
  std::vector<float> queries = Halves(5, kQueries * kQueryHeads);
  const double scale = 1 / std::sqrt(1.0 * kDim);
  for (const QuantFormat& format : InnerFormats()) {
    EXPECT_EQ(
        PackedKernelName(*Codec(PreRope(format)), AttentionArithmetic::kFloat),
        "float, decoded first");
    const auto inner = Codec(format);
    for (const int num_queries : {kQueries, 1}) {
      const auto cache = MakeCache(PreRope(format), {.keep = 7, .sinks = 5});
      const int64_t row = int64_t{kHeads} * kDim;
      const int64_t past = kTokens - num_queries;
      Append(*cache, {keys.begin(), keys.begin() + past * row}, past);
      const float* last = keys.data() + past * row;
      ASSERT_OK(cache->Append(0, num_queries, last, last));
      queries.resize(num_queries * kQueryHeads * kDim);
      std::vector<float> out(queries.size());
      ThreadPool threads(2);
      Attention(0,
                {{.cache = cache.get(),
                  .num_tokens = num_queries,
                  .queries = queries.data(),
                  .out = out.data()}},
                {.num_heads = kQueryHeads, .scale = static_cast<float>(scale)},
                threads);
      std::vector<float> stored = keys;
      for (int head = 0; head < kHeads; ++head) {
        const int64_t end = 5 + cache->layer(0).keys[head].packed_tokens();
        ASSERT_GT(end, 250);
        const auto packed = Expected(*inner, HeadRows(keys, head, 5, end), 5);
        for (int64_t t = 5; t < end; ++t)
          for (int d = 0; d < kDim; ++d)
            stored[(t * kHeads + head) * kDim + d] =
                static_cast<float>(packed[(t - 5) * kDim + d]);
      }
      std::vector<double> condition;
      const std::vector<double> expected = testing::ReferenceAttention{
          .num_heads = kQueryHeads,
          .num_kv_heads = kHeads,
          .head_dim = kDim,
          .scale = scale}(queries, stored, keys, &condition);
      for (size_t i = 0; i < out.size(); ++i)
        ASSERT_NEAR(out[i], expected[i], 2e-5) << i;
    }
  }
}

// Tokens pass from 8 bits before RoPE to 8 bits after it to 3 bits before it,
// and sit at their positions all the time.
TEST(PreRopeCacheTest, AgeRunsKeepPositions) {
  const auto rotation = MakeRotation();
  const auto young = Codec(PreRope(PerChannel(8, 16)));
  const auto middle = Codec(PerChannel(8));
  const auto old = Codec(PreRope(PerChannel(3)));
  const auto old_inner = Codec(PerChannel(3));
  constexpr int64_t kSinks = 5;
  const std::vector<float> keys = Halves(6, kTokens);
  KvStream stream(Side::kKey,
                  {.by_age = {old.get(), middle.get(), young.get()},
                   .rotation = rotation.get()},
                  kDim, kSinks, std::pmr::get_default_resource());
  std::vector<double> expected(keys.begin(), keys.end());
  double worst = 0;
  for (int64_t t = 0; t < kTokens; t += 9) {
    stream.Append(keys.data() + t * kDim, kDim,
                  std::min<int64_t>(9, kTokens - t));
    stream.QuantizeOldest(stream.window_tokens() / 16 * 16);
    for (int run = 2; run > 0; --run) {
      // Of the tokens that pass on, what they are when they do.
      const std::vector<float> held = ReadAll(stream);
      const int64_t step = stream.AgingStep(run);
      const int64_t count = stream.age_tokens(run) / 2 / step * step;
      if (run == 1 && count > 0) {
        const int64_t first = kSinks + stream.age_tokens(0);
        const auto read = Expected(*old_inner,
                                   {held.begin() + first * kDim,
                                    held.begin() + (first + count) * kDim},
                                   first);
        std::copy(read.begin(), read.end(), expected.begin() + first * kDim);
      }
      stream.Age(run, count);
    }
    const std::vector<float> read = ReadAll(stream);
    const int64_t end = (kSinks + stream.age_tokens(0)) * kDim;
    for (int64_t i = 0; i < static_cast<int64_t>(read.size()); ++i) {
      ASSERT_NEAR(read[i], expected[i], i < end ? 5e-6 : 0.08) << i / kDim;
      if (i >= end) worst = std::max(worst, std::fabs(read[i] - expected[i]));
    }
  }
  EXPECT_GE(stream.age_tokens(0), 96);
  EXPECT_GE(stream.age_tokens(1), 32);
  EXPECT_GE(stream.age_tokens(2), 16);
  EXPECT_GT(worst, 1e-3);  // 8 bits were really there
}

// What RoPE does to a channel of large numbers, and what it costs.
TEST(PreRopeCacheTest, OutlierChannelsBeforeRopeCostLess) {
  std::vector<float> keys = Halves(7);
  for (int64_t row = 0; row < kTokens * kHeads; ++row) {
    float* key = keys.data() + row * kDim;
    key[1] += 12;
    key[4] -= 8;
    const auto turned = Turned(key, row / kHeads, 1);
    std::copy(turned.begin(), turned.end(), key);
  }
  const auto error = [&](const QuantFormat& format) {
    const auto cache = MakeCache(format, {});
    Append(*cache, keys, kTokens);
    const std::vector<float> read = ReadAll(cache->layer(0).keys[0]);
    double sum = 0;
    for (int64_t t = 0; t < kTokens; ++t)
      for (int d = 0; d < kDim; ++d)
        sum += std::pow(read[t * kDim + d] - keys[t * kHeads * kDim + d], 2);
    return sum;
  };
  EXPECT_LT(error(PreRope(PerChannel(2))), 0.5 * error(PerChannel(2)));
}

TEST(PreRopeCacheTest, EstimatorsSeeTheErrorOfTheCache) {
  const std::vector<float> keys = Halves(8);
  const auto rotation = MakeRotation();
  for (const QuantFormat& format : InnerFormats()) {
    FormatChoices formats;
    *formats.add_key() = PreRope(format);
    ASSERT_OK_AND_ASSIGN(const StateQuantizer quantizer,
                         StateQuantizer::Make(formats, kDim));
    const std::vector<float> error =
        quantizer.Error(Side::kKey, 0,
                        {.num_tokens = kTokens,
                         .num_kv_heads = kHeads,
                         .head_dim = kDim,
                         .key_rotation = rotation.get(),
                         .key_states = keys.data()});
    const auto cache = MakeCache(PreRope(format), {});
    Append(*cache, keys, 41);
    for (int head = 0; head < kHeads; ++head) {
      const std::vector<float> read = ReadAll(cache->layer(0).keys[head]);
      for (int64_t t = 0; t < kTokens; ++t) {
        for (int d = 0; d < kDim; ++d) {
          const int64_t at = (t * kHeads + head) * kDim + d;
          ASSERT_EQ(read[t * kDim + d] - keys[at], error[at]);
        }
      }
    }
  }
}

class Evicts final : public EvictionPolicy {
 public:
  bool evicts() const override { return true; }
  bool WouldDrop(const EvictionState&) const override { return false; }
  std::vector<TokenList> TokensToDrop(
      const EvictionState& state) const override {
    return std::vector<TokenList>(state.heads.size());
  }
};

TEST(PreRopeCacheTest, RefusesWhatDoesNotKnowPositions) {
  const auto status = [](std::shared_ptr<const KeyRotation> rotation,
                         std::shared_ptr<const EvictionPolicy> eviction) {
    return KvCache::Create(Shape(std::move(rotation)),
                           PlanOf(PreRope(PerChannel(2))),
                           std::make_shared<KeepRecent>(KeepRecentOptions{}),
                           std::move(eviction))
        .status();
  };
  const auto invalid = [](const char* text) {
    return StatusIs(
        absl::StatusCode::kInvalidArgument,
        ::testing::AllOf(HasSubstr("layer 0 keys"), HasSubstr("\"pre_rope\""),
                         HasSubstr(text)));
  };
  EXPECT_OK(status(MakeRotation(), std::make_shared<KeepAll>()));
  EXPECT_THAT(status(nullptr, std::make_shared<KeepAll>()),
              invalid("does not know the model's RoPE"));
  EXPECT_THAT(status(MakeRotation(), std::make_shared<Evicts>()),
              invalid("use eviction_policy \"keep_all\""));
}

}  // namespace
}  // namespace kvmix
